"""Rows of different lengths in one batch, read so that padding never touches a state.

B rows, T columns, D whatever the reader gives per token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import UsageError
from .state import State

Reader = Callable[[Tensor, State], tuple[Tensor, State]]
"""(ids [B, T, ...], state) -> (output [B, T, D], state): a model, its `features`, or something made of them."""


def read_rows(
    reader: Reader, packed: Tensor, lengths: Tensor, state: State, *, columns: int | None = None
) -> tuple[Tensor, State]:
    """Read packed [B, T, ...], of which row b has its first lengths[b] columns; T is the longest, at least 1.

    Rows leave the batch as they end, so that each row of the state returned is exactly the one after its last token.
    The output [B, T, D] is 0 after a row's end. At most `columns` are given to the reader at a time.
    """
    pieces = []
    begin = 0
    for end in _ends(lengths, columns):
        rows = (lengths > begin).nonzero().squeeze(1)
        output, after = reader(packed[rows, begin:end], state.take(rows))
        whole = output.new_zeros(len(packed), *output.shape[1:])
        pieces.append(whole.index_copy(0, rows, output))
        old, new = state.named(), after.named()
        state = State.from_named({name: old[name].index_copy(0, rows, new[name].to(old[name].dtype)) for name in old})
        begin = end
    return torch.cat(pieces, dim=1), state


def read_masked(
    reader: Reader, ids: Tensor, mask: Tensor | None, state: State, *, keep_state: bool
) -> tuple[Tensor, State | None]:
    """Read the tokens of ids [B, T] where mask [B, T] is 1; the rest might as well not be there, wherever it stands.

    A column of padding repeats the output of the last real token before it; before the first it is zero. The state
    is the one after each row's last real token, or None without `keep_state`, which lets all rows be read in one go.
    """
    if mask is None or bool(mask.all()):
        return reader(ids, state)
    real = mask.bool()
    seen = real.cumsum(1)
    lengths = seen[:, -1]
    longest = int(lengths.max())
    if longest == 0:
        raise UsageError("the attention mask hides every token; at least one row must have a 1")
    first = torch.argsort(~real, dim=1, stable=True)[:, :longest]
    packed = ids.masked_fill(~real, 0).gather(1, first)
    if keep_state:
        output, after = read_rows(reader, packed, lengths, state)
    else:
        output, after = reader(packed, state)[0], None
    last = (seen - 1).clamp(min=0).unsqueeze(-1).expand(-1, -1, output.shape[-1])
    return output.gather(1, last) * (seen > 0).unsqueeze(-1), after


def _ends(lengths: Tensor, columns: int | None) -> list[int]:
    """Where a row ends, and every `columns` columns, in order."""
    ends = set(lengths.tolist()) | set(range(0, int(lengths.max()), columns) if columns else ())
    return sorted(ends - {0})

"""The look-up lane of a classifier: each run of tokens (n-gram) has a row of K numbers that is read, not computed.

The rows of the n-grams that end at a token are added to the logits which that token gives, so that the label so far, early
exit and evidence count them too. N-grams are hashed to the rows of one table, as in fastText (arXiv 1607.01759).

B batch, T tokens, K labels, N length of the longest n-gram.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NONE = -1
"""In place of a token before the text began."""
RECENT = "recent"
"""Name of the part of the state that has the last N - 1 tokens."""
_PRIME = (1 << 31) - 1
_FACTOR = 1_327_217_885  # _PRIME / golden ratio


def places(known: Any, longest: int, rows: int) -> Iterator[tuple[Any, Any]]:
    """For each length n = 1 to `longest`: rows [B, T] of the n-grams that end at each token, and whether there is one.

    `known` int64 [B, N - 1 + T], a torch tensor or a numpy array: the tokens, after the N - 1 before them (`NONE` where the
    text begins). `rows` is a power of two.
    """
    count = known.shape[1] - longest + 1
    hashed = known[:, longest - 1 :] * 0
    for n in range(longest):
        token = known[:, longest - 1 - n :][:, :count]
        hashed = (hashed * _FACTOR + token + 1) % _PRIME
        yield hashed % rows, token != NONE


class Lookup(nn.Module):
    """The table, [rows, K] in `weight`. It is no parameter: `training.lookup` fits it, the optimiser leaves it alone."""

    weight: Tensor

    def __init__(self, longest: int, rows: int, labels: int) -> None:
        super().__init__()
        self.longest = longest
        self.register_buffer("weight", torch.zeros(rows, labels))

    def forward(self, ids: Tensor, recent: Tensor) -> Tensor:
        """Logits float32 [B, T, K] of ids [B, T] that follow the `recent` [B, N - 1] tokens."""
        logits = torch.zeros(*ids.shape, self.weight.shape[1], device=self.weight.device)
        for row, real in places(_joined(recent, ids), self.longest, len(self.weight)):
            logits += self.weight[row].float() * real[..., None]
        return logits

    def begin(self, batch_size: int) -> Tensor:
        """`recent` before any token, float32 [B, N - 1]."""
        return torch.full((batch_size, self.longest - 1), float(NONE), device=self.weight.device)

    def after(self, ids: Tensor, recent: Tensor) -> Tensor:
        """`recent` once ids [B, T] have been read too."""
        return _joined(recent, ids)[:, ids.shape[1] :].float()


def ngrams(row: np.ndarray, longest: int, rows: int) -> np.ndarray:
    """Rows of the table, int64 [n], that one text of tokens reads, in no order and repeated as they are."""
    known = np.concatenate([np.full(longest - 1, NONE, np.int64), row.astype(np.int64)])[None]
    return np.concatenate([place[real] for place, real in places(known, longest, rows)])


def _joined(recent: Tensor, ids: Tensor) -> Tensor:
    return torch.cat([recent.to(ids.device, torch.int64), ids.long()], 1)

"""The recurrent state as a `transformers` cache, in the place of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache

from ..errors import UsageError
from ..model.state import State


class StateCache(Cache):
    """Carries a `State` from call to call; its size does not grow with the text.

    >>> out = model(ids, use_cache=True)
    >>> model(next_ids, cache=out.cache)
    """

    def __init__(self, state: State | None = None) -> None:
        super().__init__(layers=[])
        self.state = state
        """None before the first token."""
        self.length = 0
        """Columns read so far, padding included: where in the attention mask the next ones begin."""

    def put(self, state: State, columns: int) -> None:
        """Replace the state by the one after `columns` more columns of ids."""
        self.state = state
        self.length += columns

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read so far."""
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no limit."""
        return -1

    @property
    def is_compileable(self) -> bool:
        """False: rows may leave a batch as they end."""
        return False

    @property
    def is_croppable(self) -> bool:
        """False: a recurrent state cannot be rolled back."""
        return False

    @property
    def batch_size(self) -> int:
        """Rows of the state; -1 before the first token."""
        return -1 if self.state is None else self.state.batch_size

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam i continues what was beam `beam_idx[i]`."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        if self.state is not None:
            self.state = self.state.take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, side by side."""
        self.batch_select_indices(torch.arange(self.batch_size).repeat_interleave(repeats))

    def reset(self) -> None:
        """Drop the state."""
        self.state, self.length = None, 0

    def crop(self, tokens_to_remove: int) -> None:
        """UsageError unless nothing is to be removed: a recurrent state cannot be rolled back."""
        if tokens_to_remove:
            raise UsageError("a recurrent state cannot forget its last tokens; keep a copy of it from before them")

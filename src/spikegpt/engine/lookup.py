"""The look-up lane of a packed classifier: rows of 16-bit integers, added up in integers.

T tokens, K labels, N length of the longest n-gram.
"""

from __future__ import annotations

import numpy as np

from ..model.lookup import places
from .integers import IntegerModel


class IntegerLookup:
    """Adds to the engine's logits what the n-grams say."""

    def __init__(self, packed: IntegerModel) -> None:
        """Of a packed model whose task has a lane."""
        assert packed.config.task is not None
        self._longest = packed.config.task.ngrams
        self._table, self._scale = packed.arrays["lookup.weight"], packed.arrays["lookup.scale"]

    def add(self, ids: np.ndarray, state: np.ndarray, logits: np.ndarray) -> None:
        """Add to logits float32 [t, K], those of the last t of ids int64 [T], in place.

        `state` is the row of the text's state, whose last N - 1 values are the tokens before; they are moved on.
        """
        recent = state[1 - self._longest :]
        known = np.concatenate([recent.astype(np.int64), ids])
        wanted = known[len(known) - len(logits) - self._longest + 1 :][None]
        total = np.zeros(logits.shape, np.int32)
        for row, real in places(wanted, self._longest, len(self._table)):
            total += self._table[row[0]] * real[0][:, None]
        logits += total * self._scale
        recent[:] = known[1 - self._longest :]

"""States after the beginnings of prompts, so that what many prompts share is read once. Exact: a state is a state."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from ..model.state import State

STEP = 64
"""A state is kept after every so many tokens of a prompt; a multiple of what is read in a turn."""


class PrefixCache:
    """States by the tokens before them, the least used out first. Shared by threads."""

    def __init__(self, max_bytes: int, state_bytes: int) -> None:
        self._most = max_bytes // max(1, state_bytes)
        self._states: OrderedDict[bytes, State] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._states)

    def find(self, ids: np.ndarray) -> tuple[int, State | None]:
        """How many of a prompt's tokens a kept state has read, never all of them, and that state."""
        if not self._most:
            return 0, None
        best: tuple[int, State | None] = (0, None)
        with self._lock:
            for length, key in keys(ids[:-1]):
                if (state := self._states.get(key)) is None:
                    continue
                self._states.move_to_end(key)
                best = (length, state)
        return best

    def keep(self, key: bytes, state: State) -> None:
        """Keep a state, which nobody writes any more."""
        with self._lock:
            self._states[key] = state
            self._states.move_to_end(key)
            while len(self._states) > self._most:
                self._states.popitem(last=False)

    @property
    def wanted(self) -> bool:
        """Whether states are kept at all."""
        return self._most > 0


def keys(ids: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Every length at which the state after it is kept, and the key of the tokens so far."""
    digest = hashlib.sha256()
    for length in range(STEP, len(ids) + 1, STEP):
        digest.update(ids[length - STEP : length].tobytes())
        yield length, digest.digest()

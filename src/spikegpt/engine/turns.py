"""Many texts generated at once on the engine: a turn is one call that releases the interpreter's lock."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass
from operator import index
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ..errors import UsageError
from ..model.protocol import Likelihoods
from ..model.state import State
from .state_layout import Layout

PIECE = 32
"""Tokens that a text reads in one turn at most."""

Spikes = Literal["none", "mask", "sizes"]


@dataclass(frozen=True)
class Score:
    """How likely a token was under the model itself, before temperature, filters, penalties and bias."""

    token: int
    logprob: float
    """In nats."""
    top: list[tuple[int, float]]
    """The likeliest tokens and their log-probabilities, best first; equal ones by id."""


class Sequence:
    """One text: its state, the tokens that the state has not read, and how the next is chosen. See `EventModel.sequence`.

    It is advanced by one call at a time; its results are taken between calls.
    """

    def __init__(self, native: Any, layout: Layout, rows: Tensor) -> None:
        self.native = native
        self._layout, self._rows = layout, rows

    @property
    def waiting(self) -> int:
        """Tokens that the state has not read: of the prompt, then the one that was chosen last."""
        return self.native.waiting

    @property
    def unread(self) -> list[int]:
        """Those tokens."""
        return self.native.unread

    @property
    def row(self) -> np.ndarray:
        """The state as the engine keeps it, float32 [size]: not a copy."""
        return self._rows[0].numpy()

    def state(self) -> State:
        """A copy of the state after all that was read."""
        return self._layout.view(self._rows.clone())

    def take_scores(self) -> list[Score]:
        """The scores of the tokens since the last call: those chosen and, with `echo`, those read but the first."""
        return [Score(*score) for score in self.native.take_scores()]

    def take_spikes(self) -> bytes:
        """Who fired at each token read since the last call, site after site.

        "mask": a bit a neuron, the lowest first, each site from a new byte on; "sizes": an int8 a neuron.
        """
        return self.native.take_spikes()


def likelihoods(scores: Ids[tuple[int, float, list[tuple[int, float]]]]) -> Likelihoods:
    """What the native sequence scored, with the likeliest of each."""
    logprobs = np.array([logprob for _, logprob, _ in scores], np.float32)
    return Likelihoods(logprobs, np.array([top[0][0] == token for token, _, top in scores], bool))


def as_id(token: int) -> int:
    """A token's id; UsageError if it is not an integer, IndexError if no vocabulary can have it."""
    if type(token) is int and 0 <= token < 2**63:
        return token
    try:
        id = index(token)
    except TypeError:
        raise UsageError(f"ids must be whole numbers, not {type(token).__name__}") from None
    if not 0 <= id < 2**63:
        raise IndexError(f"token {id} is not in the vocabulary")
    return id


def as_ids(ids: Ids[int] | np.ndarray) -> np.ndarray:
    """int64 [T] in one piece, as the engine reads them. UsageError if they are not integers, or not one row."""
    given = np.asarray(ids)
    if given.dtype.kind not in "iu" and given.size:
        raise UsageError(f"ids must be whole numbers, not {given.dtype}")
    if given.ndim != 1:
        raise UsageError(f"ids must be one row of tokens, not {list(given.shape)}")
    return np.ascontiguousarray(given, np.int64)

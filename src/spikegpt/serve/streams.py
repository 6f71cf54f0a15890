"""Texts as the scheduler writes them, and the pieces in which they are handed out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ..generation.sampling import NOT_FINITE, READING, Sampling, not_finite
from ..generation.session import Session
from ..generation.text import Text
from ..model.state import State
from ..tokenizer import Tokenizer

AHEAD = 64
"""Pieces that may wait for their reader before the text is paused."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One prompt, and the texts that are to be written from it."""

    ids: np.ndarray
    """int64 [T] of the prompt; may be empty."""
    sampling: tuple[Sampling, ...]
    """Settings of each text."""
    max_tokens: int
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    ignore_end: bool = False
    spikes: Literal["none", "mask", "sizes"] = "none"
    interval: int = 1
    """Tokens a piece; 0: all at the end."""
    dense: bool = False
    """Whether every weight is read; what is written does not depend on it."""
    session: Session | None = None
    """Where the texts continue from."""
    keeps: bool = False
    """Whether the last piece has the session that the text is left at."""


class Piece(NamedTuple):
    """Something more of a text; immutable, for it goes from the worker's thread to another."""

    text: str
    tokens: tuple[int, ...]
    scores: tuple[Any, ...]
    """`engine.turns.Score` of each token read (with echo) or written."""
    spikes: bytes
    """Of every token read since the last piece."""
    reason: str | None = None
    """length, stop, end, cancelled or error, with the last piece."""
    stop: str | None = None
    """The stop string that ended it, or what went wrong."""
    session: Session | None = None


class Stream:
    """One text of an order. The worker's thread writes it; others may only call `cancel` and `took`."""

    def __init__(self, order: Order, index: int, tokenizer: Tokenizer) -> None:
        self.order, self.index = order, index
        self.sampling = order.sampling[index]
        if order.session is not None and len(order.sampling) == 1:
            self.sampling = self.sampling.continuing(order.session.seed)
        self.text = Text(
            tokenizer, order.max_tokens, order.stop, session=order.session, continues=order.keeps,
            ignore_end=order.ignore_end,
        )  # fmt: skip
        self.cached_tokens = 0
        """Tokens of the prompt that were not read, for their state was kept."""
        self.sequence: Any = None
        self.cancelled: str | None = None
        self._tokens: list[int] = []
        self._pieces: list[str] = []
        self._given = 0
        self._taken = 0

    def begin(self, model: Any, ids: np.ndarray, state: State | None, chooses: bool) -> Any:
        """Its sequence, which reads these tokens after `state`."""
        order = self.order
        self.sequence = model.sequence(
            ids, state, sampling=self.sampling, counts=self.text.counts, logprobs=order.logprobs,
            echo=order.echo, chooses=chooses, spikes=order.spikes,
        )  # fmt: skip
        return self.sequence

    def cancel(self, reason: str = "cancelled") -> None:
        """End it at the next turn."""
        self.cancelled = reason

    def took(self) -> None:
        """Says that a piece was read."""
        self._taken += 1

    @property
    def ahead(self) -> int:
        """Pieces that nobody has read yet."""
        return self._given - self._taken

    def take(self, token: int) -> Piece | None:
        """Take what the engine chose; the piece that is due."""
        if token == READING:
            return self._piece() if self.order.spikes != "none" and self.order.interval else None
        if token == NOT_FINITE:
            return self.end("error", str(not_finite()))
        self._tokens.append(token)
        self._pieces.append(self.text.advance(token))
        if self.text.reason is not None:
            return self.end(self.text.reason, self.text.stop)
        if self.order.interval and len(self._tokens) >= self.order.interval:
            return self._piece()
        return None

    def end(self, reason: str, stop: str | None = None) -> Piece:
        """The last piece."""
        session = None
        if self.order.keeps and self.sequence is not None and reason in ("length", "stop", "end"):
            session = self.text.session(self.sequence.state(), self.sampling)
        if self.text.reason is None:
            self._pieces.append(self.text.finish())
        return self._piece(reason, stop, session)

    def _piece(self, reason: str | None = None, stop: str | None = None, session: Session | None = None) -> Piece:
        sequence, order = self.sequence, self.order
        scores = tuple(sequence.take_scores()) if sequence is not None and order.logprobs is not None else ()
        spikes = sequence.take_spikes() if sequence is not None and order.spikes != "none" else b""
        piece = Piece("".join(self._pieces), tuple(self._tokens), scores, spikes, reason, stop, session)
        self._tokens, self._pieces = [], []
        self._given += 1
        return piece

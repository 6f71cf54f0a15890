"""A prompt while it is read."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine.turns import PIECE
from ..tokenizer import Tokenizer
from .prefix import PrefixCache, keys
from .streams import Stream


class Reader:
    """A prompt while it is read, once for all the texts that are written from it.

    A text alone reads its whole prompt and chooses its first token with that; several read all but the last token, and
    each continues from a copy of the state.
    """

    def __init__(self, streams: list[Stream], model: Any, cache: PrefixCache, tokenizer: Tokenizer) -> None:
        self.streams, self._model, self._cache = streams, model, cache
        order = self._order = streams[0].order
        ids = order.ids
        if (pending := streams[0].text.pending) is not None:
            ids = np.append(pending, ids)
        elif len(ids) == 0:
            ids = np.array([tokenizer.start_id])
        new = ids[int(pending is not None) :].tolist()
        for stream in streams if new else []:
            stream.text.read(new)
        self._last = int(ids[-1])
        alone = len(streams) == 1 and (order.max_tokens > 0 or order.echo)
        unread = ids if alone else ids[:-1]
        self.cached, self._state, self._keys = self._kept(unread, ids)
        for stream in streams:
            stream.cached_tokens = self.cached
        self._at, self._left = self.cached, len(unread) - self.cached
        self.sequence: Any = None
        if self._left and len(streams) == 1:
            self.sequence = streams[0].begin(model, unread[self.cached :], self._state, alone and order.max_tokens > 0)
        elif self._left:
            self.sequence = model.sequence(unread[self.cached :], self._state, chooses=False)

    def _kept(self, unread: np.ndarray, ids: np.ndarray) -> tuple[int, Any, dict[int, bytes]]:
        """How many tokens a state has read that is kept, that state, and where others are to be kept."""
        order = self._order
        if order.session is not None:
            return 0, order.session.state, {}
        if order.echo or not self._cache.wanted:
            return 0, None, {}
        cached, state = self._cache.find(ids)
        return cached, state, {length: key for length, key in keys(unread) if length > cached}

    @property
    def done(self) -> bool:
        """Whether all was read."""
        return self._left == 0

    def note(self) -> int:
        """Take note of a turn; the tokens that it read."""
        count = min(PIECE, self._left)
        self._at += count
        self._left -= count
        if (key := self._keys.get(self._at)) is not None:
            self._cache.keep(key, self.sequence.state())
        return count

    def begin(self) -> list[Stream]:
        """The texts, which now go on by themselves."""
        for stream in self.streams:
            if stream.sequence is None:
                state = self._state if self.sequence is None else self.sequence.state()
                stream.begin(self._model, np.array([self._last]), state, True)
        return self.streams

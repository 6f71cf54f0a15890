"""Writing many texts at once: a thread an engine, a turn at a time. Knows nothing of HTTP.

In a turn every text writes one token, and prompts are read for at most `READ` tokens, so that a long prompt delays nobody
by more than that. What a text gets does not depend on who else is there.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..engine.turns import PIECE
from ..generation.sampling import READING
from ..tokenizer import Tokenizer
from .prefix import PrefixCache
from .reader import Reader
from .streams import AHEAD, Order, Piece, Stream

READ = 2 * PIECE
"""Tokens of prompts that are read in a turn."""

Deliver = Callable[[list[tuple[Stream, Piece]]], None]
"""Is given what a turn wrote, in the worker's thread; must not wait."""


class Busy(Exception):
    """No more texts can be taken now."""


class Tally:
    """What a worker did; written by it alone."""

    def __init__(self) -> None:
        self.turns = 0
        self.seconds = 0.0
        self.read = 0
        """Tokens of prompts."""
        self.written = 0
        self.cached = 0
        self.cancelled = 0


class Scheduler:
    """Workers over engines of the same model; a text goes to the one that has the fewest and stays there."""

    def __init__(
        self, models: Sequence[Any], tokenizer: Tokenizer, cache: PrefixCache, deliver: Deliver, *,
        max_streams: int = 256, max_waiting: int = 512, stall_timeout: float = 60.0,
    ) -> None:  # fmt: skip
        self._most = max_streams + max_waiting
        share = -(-max_streams // len(models))
        self.workers = [Worker(model, tokenizer, cache, deliver, share, stall_timeout) for model in models]

    def submit(self, orders: Sequence[Order]) -> list[list[Stream]]:
        """Begin the texts of these orders; raises `Busy` if they are too many, and then begins none."""
        count = sum(len(order.sampling) for order in orders)
        if sum(worker.load for worker in self.workers) + count > self._most:
            raise Busy
        return [min(self.workers, key=lambda worker: worker.load).submit(order) for order in orders]

    def close(self, *, seconds: float = 3.0) -> None:
        """End every text with a last piece, then the threads."""
        for worker in self.workers:
            worker.close()
        until = time.monotonic() + seconds
        for worker in self.workers:
            worker.join(max(0.0, until - time.monotonic()))


class Worker(threading.Thread):
    """One engine and the texts that it writes."""

    def __init__(
        self, model: Any, tokenizer: Tokenizer, cache: PrefixCache, deliver: Deliver, max_streams: int, stall: float
    ) -> None:
        super().__init__(name="spikegpt-worker", daemon=True)
        self.model, self.tally = model, Tally()
        self.meter = model.meter(neurons=False)
        self._tokenizer, self._cache, self._deliver = tokenizer, cache, deliver
        self._most, self._stall = max_streams, stall
        self._wake = threading.Condition()
        self._incoming: deque[list[Stream]] = deque()
        self._closing = False
        self._reading: deque[Reader] = deque()
        self._writing: list[Stream] = []
        self._stalled: dict[Stream, float] = {}
        self._load = 0
        self.start()

    @property
    def load(self) -> int:
        """Texts that are written or wait."""
        return self._load

    @property
    def running(self) -> int:
        """Texts that are being read or written."""
        return len(self._writing) + sum(len(reader.streams) for reader in list(self._reading))

    def submit(self, order: Order) -> list[Stream]:
        """Begin an order's texts; may be called by any thread."""
        streams = [Stream(order, index, self._tokenizer) for index in range(len(order.sampling))]
        with self._wake:
            self._load += len(streams)
            self._incoming.append(streams)
            self._wake.notify()
        return streams

    def close(self) -> None:
        """End every text, then this thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def run(self) -> None:
        with self.meter:
            while self._admit():
                try:
                    self._turn()
                except Exception as error:
                    self._give([(stream, stream.end("error", repr(error))) for stream in self._all()])

    def _admit(self) -> bool:
        """Wait for something to do, and take in what has come; False: it is over."""
        with self._wake:
            while not (self._incoming or self._reading or self._writing or self._closing):
                self._wake.wait()
            if self._writing and not self._reading and all(stream.ahead >= AHEAD for stream in self._writing):
                self._wake.wait(0.02)  # for readers of what is there
            begun, running = [], self.running
            while self._incoming and (self._closing or running < self._most):
                begun.append(self._incoming.popleft())
                running += len(begun[-1])
        if self._closing:
            streams = self._all() + [stream for streams in begun for stream in streams]
            self._give([(stream, stream.end("length", "the server is going down")) for stream in streams])
            return False
        for streams in begun:
            self._begin_reading(streams)
        return True

    def _begin_reading(self, streams: list[Stream]) -> None:
        try:
            reader = Reader(streams, self.model, self._cache, self._tokenizer)
        except Exception as error:
            self._give([(stream, stream.end("error", str(error))) for stream in streams])
            return
        self.tally.cached += reader.cached
        if reader.done:
            self._give(self._begin_writing(reader, READING))
        else:
            self._reading.append(reader)

    def _all(self) -> list[Stream]:
        return self._writing + [stream for reader in self._reading for stream in reader.streams]

    def _turn(self) -> None:
        begun = time.perf_counter()
        self._drop_cancelled()
        readers = self._readers()
        writing = [stream for stream in self._writing if stream.ahead < AHEAD]
        if not readers and not writing:
            return
        chosen = self._advance(
            [reader.sequence for reader in readers] + [stream.sequence for stream in writing],
            [reader.streams[0].order.dense for reader in readers] + [stream.order.dense for stream in writing],
        )
        due: list[tuple[Stream, Piece]] = []
        for reader, token in zip(readers, chosen, strict=False):
            self.tally.read += reader.note()
            if reader.done:
                due += self._begin_writing(reader, token)
            else:
                self._reading.append(reader)
                if piece := reader.streams[0].take(READING):
                    due.append((reader.streams[0], piece))
        for stream, token in zip(writing, chosen[len(readers) :], strict=True):
            self.tally.written += 1
            if piece := stream.take(token):
                due.append((stream, piece))
        self.tally.turns += 1
        self.tally.seconds += time.perf_counter() - begun
        self._give(due)

    def _advance(self, sequences: list[Any], dense: list[bool]) -> list[int]:
        """What each chose, those that read every weight after the others."""
        if not any(dense):
            return self.model.advance(sequences)
        chosen = dict[int, int]()
        for model, reads_all in ((self.model, False), (self.model.dense(), True)):
            numbers = [number for number, given in enumerate(dense) if given == reads_all]
            chosen |= zip(numbers, model.advance([sequences[number] for number in numbers]), strict=True)
        return [chosen[number] for number in range(len(sequences))]

    def _readers(self) -> list[Reader]:
        """Whose prompts are read in this turn, in turn."""
        readers, left = [], READ
        while self._reading and left > 0:
            size = min(PIECE, self._reading[0].sequence.waiting)
            if size > left:
                break
            readers.append(self._reading.popleft())
            left -= size
        return readers

    def _begin_writing(self, reader: Reader, token: int) -> list[tuple[Stream, Piece]]:
        """A prompt is read: its texts go on by themselves."""
        due = []
        for stream in reader.begin():
            self._writing.append(stream)
            piece = None
            if stream.text.reason is not None:  # nothing is to be written
                piece = stream.end(stream.text.reason)
            elif token != READING:
                self.tally.written += 1
                piece = stream.take(token)
            if piece:
                due.append((stream, piece))
        return due

    def _drop_cancelled(self) -> None:
        now, due = time.monotonic(), []
        for stream in self._writing:
            if stream.ahead < AHEAD:
                self._stalled.pop(stream, None)
            elif now - self._stalled.setdefault(stream, now) > self._stall:
                stream.cancel()
        for stream in self._all():
            if stream.cancelled is not None:
                self.tally.cancelled += 1
                due.append((stream, stream.end(stream.cancelled)))
        if due:
            self._give(due)

    def _give(self, due: list[tuple[Stream, Piece]]) -> None:
        """Hand out pieces, and let go of the texts that have ended."""
        ended = {stream for stream, piece in due if piece.reason is not None}
        if ended:
            self._writing = [stream for stream in self._writing if stream not in ended]
            for reader in list(self._reading):
                reader.streams = [stream for stream in reader.streams if stream not in ended]
                if not reader.streams:
                    self._reading.remove(reader)
            for stream in ended:
                self._stalled.pop(stream, None)
            with self._wake:
                self._load -= len(ended)
        if due:
            self._deliver(due)

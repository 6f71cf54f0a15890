"""What routes work on: the model, its scheduler and its sessions. Everything here may import PyTorch."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import resolve
from ..data.corpus import PIECE, pieces
from ..engine import EngineModel
from ..engine.packed import is_fixed
from ..errors import UserError
from ..generation.session import Session, session_from_bytes, session_to_bytes
from ..loading import load
from ..profiling.energy import MEMORIES, TABLES
from ..task import Text
from ..tokenizer import Tokenizer
from .errors import Refusal
from .labels import Labels, LabelWorker
from .metrics import Metrics
from .prefix import PrefixCache
from .scheduler import Busy, Scheduler, Worker
from .sessions import Conflict, new_id, open_store
from .settings import Settings
from .streams import Order, Piece, Stream


class Service:
    """One model and everything that is written with it."""

    def __init__(
        self, models: Sequence[EngineModel], settings: Settings, loop: asyncio.AbstractEventLoop, metrics: Metrics
    ) -> None:
        self.model, self.settings, self._metrics = models[0], settings, metrics
        assert self.model.tokenizer is not None
        self.tokenizer: Tokenizer = self.model.tokenizer
        self._loop = loop
        self._inboxes: dict[Stream, Inbox] = {}
        self._due: deque[list[tuple[Stream, Piece]]] = deque()
        self._woken = False
        self.state_bytes = len(self.model.init_state(1).to_bytes())
        self.cache = PrefixCache(settings.prefix_memory, self.state_bytes)
        self.store = open_store(
            settings.state_dir, settings.redis, max_bytes=settings.session_memory, ttl=settings.session_ttl
        )
        self.labels: Labels | None = None
        """What a classifier answers with; None: the model writes texts."""
        self.scheduler: Scheduler | None = None
        """What writes texts; None: the model is a classifier."""
        if self.model.config.task is not None:
            self.labels = Labels(models, settings.max_streams + settings.max_waiting)
        else:
            self.scheduler = Scheduler(
                models, self.tokenizer, self.cache, self._deliver, max_streams=settings.max_streams,
                max_waiting=settings.max_waiting, stall_timeout=settings.stall_timeout,
            )  # fmt: skip
        self._busy: set[str] = set()
        metrics.service = self
        self.sites = [(row.name, row.inputs, row.outputs) for row in self.model.meter(neurons=False).counts()]
        self.products = sum(inputs * outputs for _, inputs, outputs in self.sites)

    @staticmethod
    def open(name: str | None, settings: Settings, loop: asyncio.AbstractEventLoop, metrics: Metrics) -> Service:
        """Load a model for these settings: an engine of one thread for each worker."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = settings.workers or min(cores, 8)
        engine = settings.engine
        if engine == "auto":
            engine = "fixed" if name is not None and is_fixed(resolve(Path(name))) else "event"
        try:
            return Service([load(name, engine=engine, threads=1) for _ in range(workers)], settings, loop, metrics)
        except UserError as error:
            raise UserError(f"this model cannot be served: {error}") from None

    def encode(self, text: str, param: str = "prompt") -> np.ndarray:
        """A prompt's ids, int64 [T]; refused where they are more than are allowed, before all are made."""
        most, parts, total = self.settings.max_prompt_tokens, [], 0
        for piece in pieces(text, PIECE):
            parts.append(self.tokenizer.encode(piece).astype(np.int64))
            total += len(parts[-1])
            if total > most:
                raise Refusal(400, f"the prompt has more than {most:,} tokens (--max-prompt-tokens)", param)
        return np.concatenate(parts)

    def read_prompts(self, given: Sequence[str | list[int]]) -> tuple[list[np.ndarray], list[str]]:
        """The ids and the text of each prompt."""
        ids, texts = [], []
        for prompt in given:
            if isinstance(prompt, str):
                ids.append(self.encode(prompt))
                texts.append(prompt)
                continue
            if len(prompt) > self.settings.max_prompt_tokens:
                most = self.settings.max_prompt_tokens
                raise Refusal(400, f"the prompt has more than {most:,} tokens (--max-prompt-tokens)", "prompt")
            self.check_tokens(prompt, "prompt")
            ids.append(np.array(prompt, np.int64))
            texts.append(self.tokenizer.decode(prompt))
        return ids, texts

    @property
    def end_of_text(self) -> str | None:
        """The name of the token that ends a text."""
        eos = self.tokenizer.eos_id
        return None if eos is None else self.tokenizer.token_bytes(eos).decode("utf-8", "replace")

    @property
    def vocabulary(self) -> int:
        """Tokens that requests may name."""
        return min(self.model.config.vocab_size, self.tokenizer.vocab_size)

    def check_tokens(self, ids: Iterable[int], param: str) -> None:
        """Refuse tokens that the model does not have."""
        size = self.vocabulary
        wrong = next((token for token in ids if not 0 <= token < size), None)
        if wrong is not None:
            raise Refusal(400, f"token {wrong} is not in the vocabulary of {size:,} tokens", param)

    def site_list(self) -> list[list[Any]]:
        """Names and sizes of the layers of neurons, in the order of a token's spikes."""
        return [[name, inputs] for name, inputs, _ in self.sites]

    def facts(self) -> dict[str, Any]:
        """The model for clients: a context of null has no limit, a task of null writes texts."""
        config, task = self.model.config, self.model.config.task
        return {
            "parameters": self.products + config.vocab_size * config.n_embd, "n_layer": config.n_layer,
            "n_embd": config.n_embd, "vocab": config.vocab_size, "bits": self.model.bits, "state_bytes": self.state_bytes,
            "context": None, "products": self.products, "sites": self.site_list(),
            "outputs": [outputs for _, _, outputs in self.sites], "energy": energy(self.model.bits),
            "task": task and {"kind": task.kind, "labels": list(task.labels), "pairs": task.pairs},
        }  # fmt: skip

    def begin(self, orders: Sequence[Order]) -> Inbox:
        """Begin these orders' texts; their pieces come together, each with the text's number."""
        if self.scheduler is None:
            raise Refusal(404, "this model labels texts and writes none: use /classify")
        with refused_if_busy():
            groups = self.scheduler.submit(orders)
        inbox = Inbox([stream for group in groups for stream in group], self._metrics)
        for stream in inbox.streams:
            self._inboxes[stream] = inbox
        return inbox

    def _deliver(self, due: list[tuple[Stream, Piece]]) -> None:
        self._due.append(due)
        if not self._woken:  # else the loop, which is behind, finds this too
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop has ended before the worker
                self._loop.call_soon_threadsafe(self._sort)

    def _sort(self) -> None:
        self._woken = False  # first: what comes from now on wakes the loop again
        while self._due:
            self._put(self._due.popleft())

    def _put(self, due: list[tuple[Stream, Piece]]) -> None:
        for stream, piece in due:
            inbox = self._inboxes.get(stream)
            if inbox is None:
                continue
            inbox.put(stream, piece)
            if piece.reason is not None:
                del self._inboxes[stream]

    @property
    def workers(self) -> Sequence[Worker | LabelWorker]:
        """What the engines do."""
        doing = self.scheduler or self.labels
        assert doing is not None
        return doing.workers

    def end_texts(self) -> None:
        """End every text with a last piece, and begin none; does not wait."""
        for worker in self.scheduler.workers if self.scheduler else ():
            worker.close()

    def close(self) -> None:
        """The same, and wait for it."""
        if self.scheduler is not None:
            self.scheduler.close()
        if self.labels is not None:
            self.labels.close()

    # Labels

    def encode_labelled(self, texts: Sequence[Text]) -> list[np.ndarray]:
        """Tokens of texts, or of pairs, that are to be labelled."""
        assert self.labels is not None
        for text in texts:
            for part in (text,) if isinstance(text, str) else text:
                self.encode(part, "input")  # refused where it is too long
        return self.labels.classifier.encode(texts)

    def check_room(self, texts: int) -> None:
        """Refuse so many texts more if they are too many."""
        assert self.labels is not None
        with refused_if_busy():
            self.labels.check_room(texts)

    # Sessions

    def claim(self, id: str) -> None:
        """From now on nobody else on this server may continue from the session."""
        if id in self._busy:
            raise Refusal(409, "another request is writing this session; wait for its end, or fork it", "session")
        self._busy.add(id)

    def release(self, id: str) -> None:
        """The opposite of `claim`."""
        self._busy.discard(id)

    async def fetch(self, id: str) -> bytes:
        """A session's file."""
        data = await asyncio.to_thread(self.store.get, id)
        if data is None:
            raise Refusal(404, f"there is no session {id}, or not any more", "session")
        return data

    def parse(self, data: bytes) -> Session:
        """A session's file, checked."""
        session = session_from_bytes(data, self.model, "the session")
        self.model.check_state(session.state)
        return session

    async def save(self, id: str, session: Session, version: str | None) -> None:
        """Write a session that was of `version`."""
        await self.save_bytes(id, session_to_bytes(session), version)

    async def save_bytes(self, id: str, data: bytes, version: str | None) -> None:
        """The same for its file."""
        try:
            await asyncio.to_thread(self.store.put, id, data, version)
        except Conflict:
            raise Refusal(409, "another server has written this session meanwhile; read it again", "session") from None

    async def add_session(self, session: Session) -> str:
        """Keep a session under a new id."""
        id = new_id()
        await self.save(id, session, None)
        return id

    def fresh(self) -> Session:
        """A session that has read nothing."""
        return Session(self.model.init_state(1))


@contextlib.contextmanager
def refused_if_busy() -> Iterator[None]:
    """Refuse with 429 where there is no room for more."""
    try:
        yield
    except Busy:
        busy = "too many texts are being worked on and waiting (--max-streams, --max-waiting); try again"
        raise Refusal(429, busy, headers={"retry-after": "1"}) from None


class Inbox:
    """The pieces of a request's texts, in the order in which they were written. Lives in the loop's thread."""

    def __init__(self, streams: list[Stream], metrics: Metrics) -> None:
        self.streams, self._metrics = streams, metrics
        self._asked = time.perf_counter()
        self._begun: dict[Stream, float] = {}
        self._number = {stream: number for number, stream in enumerate(streams)}
        self._pieces: deque[tuple[int, Piece]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._open = len(streams)

    def put(self, stream: Stream, piece: Piece) -> None:
        """Add a piece."""
        if piece.tokens:
            now = time.perf_counter()
            if stream not in self._begun:
                self._metrics.first_token.observe(now - self._asked)
            begun = self._begun.setdefault(stream, now)
            if piece.reason is not None and stream.text.tokens > 1:
                self._metrics.token.observe((now - begun) / (stream.text.tokens - 1))
        self._pieces.append((self._number[stream], piece))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def ready(self) -> bool:
        """Whether there is a piece that needs no waiting."""
        return bool(self._pieces)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        while self._open:
            while not self._pieces:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            number, piece = self._pieces.popleft()
            self.streams[number].took()
            self._open -= piece.reason is not None
            yield number, piece

    def cancel(self) -> None:
        """Nobody reads any more."""
        for stream in self.streams:
            stream.cancel()


def energy(bits: int) -> dict[str, Any]:
    """pJ of a product of a dense model and of an event, each with its weight read from the named memory."""
    table, memory = TABLES[1], "SRAM"
    read = MEMORIES[memory] * bits / 8
    return {"table": table.name, "memory": memory, "dense": table.mac + read, "event": table.ac + read}

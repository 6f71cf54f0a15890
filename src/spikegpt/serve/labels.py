"""Labels of texts as they form: a thread an engine, a piece of a text at a time. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from ..model.classifier import Classifier, chances_of, so_far
from .scheduler import Busy, Tally

PIECE = 64
"""Tokens that are read in one call, so that a long text delays nobody by more than that."""


class Formed(NamedTuple):
    """What is known of a text after more of it was read."""

    chances: np.ndarray
    """Probabilities float64 [t, K] after each of these tokens, in order; of a regression the answers [t, 1]."""
    weights_read: int
    """Weights that were read for these tokens."""


class Labels:
    """A classifier on one engine or several; a text is read by the one that has the fewest, and stays there."""

    def __init__(self, models: Sequence[Any], most: int) -> None:
        self.classifier = Classifier(models[0])
        self.workers = [LabelWorker(model) for model in models]
        self._most = most

    def check_room(self, texts: int) -> None:
        """Raises `Busy` if so many texts more are too many."""
        if sum(worker.load for worker in self.workers) + texts > self._most:
            raise Busy

    async def read(self, row: np.ndarray) -> AsyncGenerator[Formed]:
        """Read one text's tokens [T], and give what is known as soon as it is. Who closes the iterator ends the reading."""
        worker = min(self.workers, key=lambda worker: worker.load)
        state, total, task = None, np.zeros(len(self.classifier.task.labels)), self.classifier.task
        with worker:
            for begin in range(0, len(row), PIECE):
                logits, state, weights = await worker.read(row[begin : begin + PIECE], state)
                sums, tokens = so_far(logits, total, begin)
                total = sums[-1]
                yield Formed(chances_of(sums / tokens[:, None], tokens, task), weights)

    def describe(self, chances: np.ndarray) -> dict[str, Any]:
        """The answer at probabilities [K], for clients."""
        task = self.classifier.task
        names = self.classifier.names(chances)
        if task.kind == "regression":
            return {"label": task.labels[0], "value": float(chances[0]), "probs": [], "num_classes": 1}
        answer = {"label": task.labels[int(chances.argmax())], "probs": chances.tolist(), "num_classes": len(chances)}
        return answer | ({"labels": names} if task.kind == "multi" else {})

    def close(self) -> None:
        """Read nothing any more."""
        for worker in self.workers:
            worker.close()


class LabelWorker:
    """One engine and the texts that it reads; counts as `scheduler.Worker` does. `with` it for as long as a text is read."""

    def __init__(self, model: Any) -> None:
        self.tally = Tally()
        self.meter = model.meter(neurons=False)
        self._model, self._load, self._lock = model, 0, threading.Lock()
        self._thread = ThreadPoolExecutor(1, "spikegpt-labels", initializer=self.meter.__enter__)

    def __enter__(self) -> None:
        with self._lock:
            self._load += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._load -= 1

    @property
    def load(self) -> int:
        """Texts that are read or wait."""
        return self._load

    @property
    def running(self) -> int:
        """Texts that are read."""
        return min(self._load, 1)

    async def read(self, ids: np.ndarray, state: Any) -> tuple[np.ndarray, Any, int]:
        """Logits float32 [t, K] of these tokens after `state`, the next state, and how many weights were read."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, ids, state)

    def close(self) -> None:
        """End the thread, after the piece that it reads."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, ids: np.ndarray, state: Any) -> tuple[np.ndarray, Any, int]:
        with torch.inference_mode(), self._model.meter(neurons=False) as meter:
            logits, state = self._model(torch.from_numpy(ids.astype(np.int64))[None], state)
        self.tally.turns += 1
        self.tally.read += len(ids)
        return logits[0].numpy(), state, sum(site.active * site.outputs for site in meter.counts())

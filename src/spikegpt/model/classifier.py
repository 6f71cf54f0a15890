"""Texts to labels, by the mean of the logits of every token.

B rows, T tokens, K labels. Because the mean is over per-token logits, one set of numbers is the answer, the answer so far
after each token, and the evidence that each token gave.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError, UserError
from ..task import TaskConfig, Text
from ..tokenizer import Tokenizer
from .protocol import LanguageModel, Streaming, evaluating, tokenizer_of
from .state import State

CHUNK = 1024
"""Tokens of a text that are read at a time; memory does not grow with the length of a text."""
TOGETHER = 8192
"""Tokens of texts of the same length that are read together."""

_READ = "spikegpt.label_stream"
"""Of a saved stream: what has been read, in the file's metadata."""

Report = Callable[[int, int], object]
"""Progress callback: (texts read, total)."""


def mean_logits(logits: Tensor, lengths: Tensor) -> Tensor:
    """Mean [B, K] of logits [B, T, K] over the first lengths[b] tokens of each row, in float32."""
    real = torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]
    return (logits.float() * real[..., None]).sum(1) / lengths[:, None]


def probabilities(logits: np.ndarray, task: TaskConfig) -> np.ndarray:
    """Probabilities [..., K] of logits [..., K] at the task's temperature; of a regression, the answers [..., 1]."""
    logits = np.asarray(logits, np.float64)
    if task.kind == "regression":
        return task.offset + task.scale * logits
    scaled = logits / task.temperature
    if task.kind == "multi":
        return 1 / (1 + np.exp(-np.clip(scaled, -700, 700)))
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def chances_of(means: np.ndarray, tokens: np.ndarray | int, task: TaskConfig) -> np.ndarray:
    """Probabilities [..., K] of the mean logits [..., K] of texts of that many tokens [...]; of a regression, the answers."""
    return probabilities(by_length(means, tokens, task), task)


def by_length(means: np.ndarray, tokens: np.ndarray | int, task: TaskConfig) -> np.ndarray:
    """Mean logits [..., K] of texts of that many tokens [...], the larger the longer the text (`TaskConfig.length_power`)."""
    return means * np.asarray(tokens, np.float64)[..., None] ** task.length_power


def so_far(logits: np.ndarray, total: np.ndarray | None = None, read: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sums float64 [T, K] of the logits [T, K] up to each token, and how many tokens [T] those are.

    `total` float64 [K] is the sum of the `read` tokens before. Token is added to token, as in a stream: to the same bits.
    """
    before = np.zeros((1, logits.shape[1])) if total is None else total[None]
    return np.concatenate([before, logits]).cumsum(0)[1:], np.arange(read + 1, read + 1 + len(logits))


def settled(sums: np.ndarray, tokens: np.ndarray | int, task: TaskConfig) -> np.ndarray:
    """How probable it is [...] that the label of the sums [..., K] of the first `tokens` [...] tokens' logits stays.

    Evidence adds up: the more was read and the clearer it is, the less what follows can change (`fit_stop`).
    """
    if task.stop_temperature is None:
        return chances_of(sums / np.asarray(tokens)[..., None], tokens, task).max(-1)
    return probabilities(sums, dataclasses.replace(task, temperature=task.stop_temperature)).max(-1)


def numbers_looked_up(task: TaskConfig, tokens: float) -> float:
    """Numbers that the look-up lane reads for a text of that many tokens: K for each n-gram that ends in it."""
    short = min(tokens, task.ngrams)
    return len(task.labels) * (tokens * task.ngrams - short * (2 * task.ngrams - short - 1) / 2) if task.ngrams else 0


def task_of(model: LanguageModel) -> TaskConfig:
    """The task of a classifier; a UsageError where the model is a language model."""
    if model.config.task is None:
        raise UsageError("this is a language model, no classifier; make one of it with spikegpt finetune")
    return model.config.task


def encode_texts(tokenizer: Tokenizer, texts: Sequence[Text]) -> list[np.ndarray]:
    """Tokens int32 of each text; of a pair, both with the end-of-text token in between. UsageError: a text has none."""
    if any(isinstance(text, tuple) for text in texts):
        first, second = (tokenizer.encode_many([text[i] for text in texts]) for i in (0, 1))
        end = np.array([] if tokenizer.eos_id is None else [tokenizer.eos_id], np.int32)
        rows = [np.concatenate([a, end, b]) for a, b in zip(first, second, strict=True)]
    else:
        rows = tokenizer.encode_many([text for text in texts if isinstance(text, str)])
    for number, row in enumerate(rows, 1):
        if len(row) == 0:
            raise UsageError(f"text {number} is empty; there is nothing to classify")
    return rows


def of_one_length(rows: Sequence[np.ndarray], most_tokens: int) -> Iterator[np.ndarray]:
    """Numbers of rows that have the same length, at most `most_tokens` tokens (or one row) at a time: nothing is padded."""
    lengths = np.array([len(row) for row in rows])
    for length in np.unique(lengths):
        inside = np.flatnonzero(lengths == length)
        size = max(1, most_tokens // max(int(length), 1))
        for begin in range(0, len(inside), size):
            yield inside[begin : begin + size]


@dataclass(frozen=True)
class Evidence:
    """What one word of a text said for each label."""

    word: str
    logits: np.ndarray
    """[K] the sum of its tokens' logits over the text's number of tokens: words sum to the text's logits."""


class Classifier:
    """Labels texts with a model that has a task: a `SpikeGPT`, or an `EventModel` on its integer engine."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.task, self.tokenizer = model, task_of(model), tokenizer_of(model)

    def encode(self, texts: Sequence[Text]) -> list[np.ndarray]:
        """Tokens of each text; UsageError where a pair is given for a single text, or the reverse."""
        if any(isinstance(text, tuple) != self.task.pairs for text in texts):
            raise UsageError(f"this classifier reads {'pairs of texts' if self.task.pairs else 'one text at a time'}")
        return encode_texts(self.tokenizer, texts)

    def logits(self, rows: Sequence[np.ndarray], report: Report | None = None) -> np.ndarray:
        """Mean logits float32 [N, K] of tokenised texts; no row is padded."""
        out = np.empty((len(rows), len(self.task.labels)), np.float32)
        for chosen, chunks in self._batches(rows, report):
            total = sum(each.double().sum(1) for each in chunks)
            out[chosen] = (total / len(rows[chosen[0]])).cpu().numpy()  # pyright: ignore[reportAttributeAccessIssue]
        return out

    def probabilities(self, texts: Sequence[Text], report: Report | None = None) -> np.ndarray:
        """Probabilities float64 [N, K]; of a regression, the answers [N, 1]."""
        rows = self.encode(texts)
        return chances_of(self.logits(rows, report), np.array([len(row) for row in rows]), self.task)

    def every_token(self, rows: Sequence[np.ndarray], report: Report | None = None) -> list[np.ndarray]:
        """Logits float32 [T, K] that each token of each tokenised text gave; no row is padded."""
        found: dict[int, np.ndarray] = {}
        for chosen, chunks in self._batches(rows, report):
            logits = torch.cat([each.float().cpu() for each in chunks], 1).numpy()
            found |= zip(chosen.tolist(), logits, strict=True)
        return [found[number] for number in range(len(rows))]

    def why(self, text: Text) -> list[Evidence]:
        """What each word of the text said for each label, in order."""
        (row,) = self.encode([text])
        shares = self.every_token([row])[0] / len(row)
        found: list[Evidence] = []
        spelt, logits = b"", np.zeros(shares.shape[1])
        for token, share in zip(row, shares, strict=True):
            piece = self.tokenizer.token_bytes(int(token))
            if piece[:1].isspace() and spelt.strip():
                found.append(Evidence(spelt.decode("utf-8", "replace").strip(), logits))
                spelt, logits = b"", np.zeros(shares.shape[1])
            spelt, logits = spelt + piece, logits + share
        return [*found, Evidence(spelt.decode("utf-8", "replace").strip(), logits)]

    def names(self, chances: np.ndarray) -> list[str]:
        """The labels given at probabilities [K]: the likeliest, or those above their thresholds (multi)."""
        if self.task.kind == "regression":
            return [f"{chances[0]:g}"]
        if self.task.kind == "single":
            return [self.task.labels[int(chances.argmax())]]
        limits = self.task.thresholds or (0.5,) * len(self.task.labels)
        return [name for name, p, limit in zip(self.task.labels, chances, limits, strict=True) if p >= limit]

    def stream(self, saved: str | os.PathLike[str] | None = None) -> LabelStream:
        """A text read as it comes; `saved` (of `LabelStream.save`): one that goes on. UserError: it is no such file."""
        return LabelStream(self, saved)

    def _batches(
        self, rows: Sequence[np.ndarray], report: Report | None
    ) -> Iterator[tuple[np.ndarray, Iterator[Tensor]]]:
        """Numbers [B] of rows of one length, and their logits [B, t, K] a chunk at a time; reported once they are read."""
        done = 0
        for chosen in of_one_length(rows, TOGETHER):
            yield chosen, self._read(torch.from_numpy(np.stack([rows[i] for i in chosen]).astype(np.int64)))
            done += len(chosen)
            if report is not None:
                report(done, len(rows))

    def _read(self, ids: Tensor) -> Iterator[Tensor]:
        """Logits [B, t, K] of ids [B, T], a chunk at a time."""
        state = None
        for begin in range(0, ids.shape[1], CHUNK):
            with torch.inference_mode(), evaluating(self.model):
                logits, state = self.model(ids[:, begin : begin + CHUNK].to(self.model.device), state)
            yield logits


class LabelStream:
    """The answer so far, after each token of a text that is still coming; state and sum are all that it keeps."""

    def __init__(self, classifier: Classifier, saved: str | os.PathLike[str] | None = None) -> None:
        self._classifier = classifier
        model = classifier.model
        self._stream = model.stream() if isinstance(model, Streaming) else None
        self._state: Any = None
        self._sum = np.zeros(len(classifier.task.labels))
        self.tokens = 0
        """Tokens read."""
        if saved is not None:
            self._restore(saved)

    def push(self, text: str) -> np.ndarray:
        """Read more of the text; probabilities [K] after all of it. Each piece is tokenised by itself: push whole words."""
        chances = self.chances()
        for token in self._classifier.tokenizer.encode(text):
            chances = self.step(int(token))
        return chances

    @torch.inference_mode()
    def step(self, token: int) -> np.ndarray:
        """Read one token; probabilities [K] (of a regression, the answer [1]) after all tokens so far."""
        if self._stream is not None:
            logits = self._stream.step(token)
        else:
            model = self._classifier.model
            with evaluating(model):
                out, self._state = model(torch.tensor([[token]], device=model.device), self._state)
            logits = out[0, -1]
        self._sum += logits.double().cpu().numpy()
        self.tokens += 1
        return self.chances()

    def settled(self) -> float:
        """How probable it is that the label stays, whatever follows; 0 before the first token. Single labels only."""
        return float(settled(self._sum, self.tokens, self._classifier.task)) if self.tokens else 0.0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that is needed to go on reading later, atomically: the model's state, the sum and the tokens."""
        if not self.tokens:
            raise UsageError("nothing has been read yet: there is no state to save")
        state = self._state if self._stream is None else self._stream.state()
        state.save(path, {_READ: json.dumps({"tokens": self.tokens, "sum": self._sum.tolist()})})

    def _restore(self, path: str | os.PathLike[str]) -> None:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from None
        state, metadata = State.from_bytes(data, str(path))
        try:
            read = json.loads(metadata[_READ])
            tokens, total = int(read["tokens"]), np.array(read["sum"], np.float64)
        except (KeyError, ValueError, TypeError):
            raise UserError(f"{path} is not the saved state of a label stream") from None
        if total.shape != self._sum.shape or not np.isfinite(total).all() or tokens < 1:
            raise UserError(f"{path} is the saved state of a classifier with other labels")
        model = self._classifier.model
        if isinstance(model, Streaming):
            self._stream = model.stream(state)
        else:
            self._state = state.to(model.device)
        self.tokens, self._sum = tokens, total

    def chances(self) -> np.ndarray:
        """Probabilities [K] after all tokens so far; before the first, those of logits of zero."""
        tokens = max(self.tokens, 1)
        return chances_of(self._sum / tokens, tokens, self._classifier.task)

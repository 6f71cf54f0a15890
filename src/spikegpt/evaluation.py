"""How well a model predicts a text: bits per byte, with the state carried from the first token to the last.

B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .data.corpus import PIECE, kind, pieces
from .data.encode import encode, encoded
from .errors import UsageError, UserError
from .model.protocol import LanguageModel, Scoring, check_predicts_tokens, evaluating, tokenizer_of
from .model.state import State
from .tokenizer import Tokenizer

Report = Callable[[int, int], object]
"""Progress callback: (tokens read, total)."""


@dataclass(frozen=True)
class Evaluation:
    """Result of evaluating a model on a text."""

    bits_per_byte: float
    """Bits for the whole text over its raw bytes, whatever the tokenizer."""
    bits_per_token: float
    perplexity: float
    """2 to the bits per token; infinite where that passes a float."""
    tokens: int
    bytes: int
    """Bytes of UTF-8 text that the tokens stand for: all of the text, in the tokenizer's normal form if it has one, without
    the ends of documents."""
    spike_rate: float
    """Fraction of neuron-steps with a spike; 0 for a model without neurons."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values under the fields' names."""
        return dataclasses.asdict(self)


def evaluate(
    model: LanguageModel,
    source: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | None = None,
    chunk: int = 1024,
    streams: int = 1,
    report: Report | None = None,
) -> Evaluation:
    """Bits per byte of a text, or of the file or folder that `source` (a Path, or a str that names one) stands for.

    The state is carried through all of it; `chunk`, `streams` and `report` as in `bits_on_tokens`. Raises UsageError
    where the model has no tokenizer and where `source` looks like a path but nothing is there, UserError where a file
    cannot be read.
    """
    if isinstance(source, os.PathLike) or _is_path(source):
        return evaluate_files(model, [Path(source)], tokenizer=tokenizer, chunk=chunk, streams=streams, report=report)
    tokenizer = tokenizer_of(model, tokenizer)
    ids = np.concatenate(list(encode(pieces(source, PIECE), tokenizer)))
    return bits_on_tokens(model, ids, tokenizer.text_bytes(ids), chunk=chunk, streams=streams, report=report)


def evaluate_files(
    model: LanguageModel,
    paths: Sequence[Path],
    *,
    tokenizer: Tokenizer | None = None,
    chunk: int = 1024,
    streams: int = 1,
    report: Report | None = None,
) -> Evaluation:
    """Bits per byte of files, folders and globs (see `corpus.read_files`), read as one text.

    As in training, the end of a file is a token of its own, if the tokenizer has one; it adds no bytes.
    """
    with encoded(paths, tokenizer_of(model, tokenizer)) as text:
        return bits_on_tokens(model, text.ids, text.n_bytes, chunk=chunk, streams=streams, report=report)


def bits_on_tokens(
    model: LanguageModel,
    ids: np.ndarray,
    n_bytes: int,
    *,
    chunk: int = 1024,
    streams: int = 1,
    report: Report | None = None,
) -> Evaluation:
    """Cross-entropy in bits of the model on `ids` [N], the tokens of `n_bytes` bytes of text.

    Each token is predicted from all before it, `chunk` tokens at a time. The first has no context and counts
    log2(V) bits, so that every byte is accounted for. With `streams` > 1 the tokens are read as that many contiguous
    parts in one batch: faster but approximate, for each part begins with an empty state and the one token before it.
    `report` is called after every chunk. Raises UserError for fewer than 2 tokens, and where the model predicts NaN.
    """
    check_predicts_tokens(model)
    if len(ids) < 2:
        raise UserError(f"a text of {len(ids)} tokens is too short to evaluate; at least 2 are needed")
    if chunk < 1 or streams < 1:
        raise UsageError(f"chunk={chunk} and streams={streams} must be above zero")
    nats = math.log(model.config.vocab_size)
    state, read = None, 1
    with torch.inference_mode(), evaluating(model), model.meter() as meter:
        for rows in _chunks(ids, streams, chunk):
            more, state = _cross_entropy(model, rows, state)
            nats += more
            read += sum(max(0, len(row) - 1) for row in rows)
            if report is not None:
                report(read, len(ids))
    if math.isnan(nats):
        raise UserError("the model predicts no numbers (NaN); its weights may come from a run that diverged")
    bits = nats / math.log(2)
    return Evaluation(
        bits_per_byte=bits / n_bytes,
        bits_per_token=bits / len(ids),
        perplexity=_power_of_two(bits / len(ids)),
        tokens=len(ids),
        bytes=n_bytes,
        spike_rate=meter.rate,
    )


def _chunks(ids: np.ndarray, streams: int, chunk: int) -> Iterator[list[np.ndarray]]:
    """The next tokens of each stream, int64, `chunk` of them but at the end, after the one before: a row without two
    tokens has ended."""
    count = len(ids) - 1
    length = -(-count // max(1, min(streams, count)))
    for start in range(0, length, chunk):
        width = min(chunk, length - start)
        yield [ids[first + start : min(first + start + width, count) + 1] for first in range(0, count, length)]


def _cross_entropy(model: LanguageModel, rows: list[np.ndarray], state: State | None) -> tuple[float, State]:
    """Nats of rows of tokens, each from those before it, the first from none and not counted; the next state."""
    if isinstance(model, Scoring):
        scored, state = model.score(rows, state)
        return -math.fsum(nats for row in scored for nats in row.logprobs.tolist()), state
    width = max(len(row) for row in rows) - 1
    inputs = np.zeros((len(rows), width), np.int64)
    targets = np.full((len(rows), width), -100, np.int64)
    for row, found in enumerate(rows):
        if len(found) > 1:
            inputs[row, : len(found) - 1], targets[row, : len(found) - 1] = found[:-1], found[1:]
    logits, state = model(torch.from_numpy(inputs).to(model.device), state)
    return _nats(logits, torch.from_numpy(targets).to(model.device)), state


def _nats(logits: Tensor, targets: Tensor) -> float:
    """Cross entropy summed in double precision: over a whole file, float32 would lose digits."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
    return losses.double().sum().item()


def _power_of_two(exponent: float) -> float:
    return 2.0**exponent if exponent < 1024 else math.inf


def _is_path(source: str) -> bool:
    """Whether the text names a file, folder or pattern that is there; UsageError if it can only be meant to."""
    if "\n" in source or "\0" in source or not 0 < len(source) < 1024:
        return False
    path = Path(source)
    try:
        if path.exists():
            return True
    except OSError:  # a name that no file can have
        return False
    is_one_word = not any(char.isspace() for char in source)
    if kind(path) is not None or (is_one_word and (os.sep in source or "/" in source)):
        raise UsageError(
            f"there is no {source}; to evaluate these characters as a text, end them with a line end; for a pattern, pass "
            "a Path"
        )
    return False

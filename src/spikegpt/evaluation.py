"""How well a model predicts a text: bits per byte, with the state carried from the first token to the last.

B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .data.corpus import PIECE, expand, pieces, read_documents
from .errors import UsageError, UserError
from .model.protocol import LanguageModel, evaluating, tokenizer_of
from .tokenizer import Tokenizer

Report = Callable[[int, int], object]
"""Hears how many of how many tokens are read."""


@dataclass(frozen=True)
class Evaluation:
    """What predicting a text cost."""

    bits_per_byte: float
    """Bits for the whole text over its raw bytes, whatever the tokenizer."""
    bits_per_token: float
    perplexity: float
    """2 to the bits per token; infinite where that passes a float."""
    tokens: int
    bytes: int
    """Bytes of the raw text."""
    spike_rate: float
    """Share of neuron-steps with a spike; 0 for a model without neurons."""

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
    where the model has no tokenizer, UserError where a file cannot be read.
    """
    if isinstance(source, os.PathLike) or _is_path(source):
        return evaluate_files(model, [Path(source)], tokenizer=tokenizer, chunk=chunk, streams=streams, report=report)
    ids = tokenizer_of(model, tokenizer).encode(source)
    return bits_on_tokens(model, ids, len(source.encode()), chunk=chunk, streams=streams, report=report)


def evaluate_files(
    model: LanguageModel,
    paths: Sequence[Path],
    *,
    tokenizer: Tokenizer | None = None,
    chunk: int = 1024,
    streams: int = 1,
    report: Report | None = None,
) -> Evaluation:
    """Bits per byte of files, folders and globs (see `corpus.expand`), read as one text.

    As in training, the end of a file is a token of its own, if the tokenizer has one; it adds no bytes.
    """
    tokenizer = tokenizer_of(model, tokenizer)
    end = [] if tokenizer.eos_id is None else [np.array([tokenizer.eos_id])]
    ids, n_bytes = [np.empty(0, np.int32)], 0
    for path in expand(paths):
        for document in read_documents(path):
            ids += tokenizer.encode_many(list(pieces(document.text, PIECE))) + (end if document.ends else [])
            n_bytes += len(document.text.encode())
    return bits_on_tokens(model, np.concatenate(ids), n_bytes, chunk=chunk, streams=streams, report=report)


def bits_on_tokens(
    model: LanguageModel,
    ids: np.ndarray,
    n_bytes: int,
    *,
    chunk: int = 1024,
    streams: int = 1,
    report: Report | None = None,
) -> Evaluation:
    """Bits that `ids` [N], the tokens of `n_bytes` bytes of text, cost the model.

    Each token is predicted from all before it, `chunk` tokens at a time. The first has none before it and is charged
    log2(V), so that every byte is paid for. With `streams` > 1 the tokens are read as that many contiguous parts in one
    batch: faster, but only approximate, for each part begins with an empty state and the one token before it.
    `report` hears of every chunk. Raises UserError for fewer than 2 tokens, and where the model predicts NaN.
    """
    if len(ids) < 2:
        raise UserError(f"a text of {len(ids)} tokens is too short to evaluate; at least 2 are needed")
    if chunk < 1 or streams < 1:
        raise UsageError(f"chunk={chunk} and streams={streams} must be above zero")
    device = model.device
    inputs, targets = _streams(ids, streams)
    nats = math.log(model.config.vocab_size)
    state = None
    with torch.inference_mode(), evaluating(model), model.meter() as meter:
        for start in range(0, inputs.shape[1], chunk):
            logits, state = model(inputs[:, start : start + chunk].to(device), state)
            nats += _nats(logits, targets[:, start : start + chunk].to(device))
            if report is not None:
                report(min((start + chunk) * len(inputs), len(ids)), len(ids))
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


def _streams(ids: np.ndarray, streams: int) -> tuple[Tensor, Tensor]:
    """ids [N] as inputs and targets [streams, T]; targets beyond the end are -100."""
    count = len(ids) - 1
    length = -(-count // max(1, min(streams, count)))
    rows = -(-count // length)
    inputs = np.zeros(rows * length, np.int64)
    targets = np.full(rows * length, -100, np.int64)
    inputs[:count], targets[:count] = ids[:-1], ids[1:]
    return torch.from_numpy(inputs).view(rows, length), torch.from_numpy(targets).view(rows, length)


def _nats(logits: Tensor, targets: Tensor) -> float:
    """Cross entropy summed in double precision: over a whole file, float32 would lose digits."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
    return losses.double().sum().item()


def _power_of_two(exponent: float) -> float:
    return 2.0**exponent if exponent < 1024 else math.inf


def _is_path(source: str) -> bool:
    return "\n" not in source and len(source) < 1024 and os.path.exists(source)

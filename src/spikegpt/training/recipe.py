"""From paths to a trained model: what `spikegpt train` does, as one call."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import read_config
from ..config import ModelConfig, TrainConfig, preset
from ..data.corpus import PIECE, documents, pieces
from ..data.tokens import prepare
from ..errors import UsageError
from ..loading import load_teachers
from ..model.spikegpt import SpikeGPT
from ..tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, load_tokenizer, train_bpe
from .language import fit_text
from .lock import checkpoint_of, refuse_existing, refuse_running
from .machine import Machine, as_begun, choose

PathLike = str | os.PathLike[str]


def train_on(
    data: Sequence[PathLike],
    out: PathLike,
    *,
    valid: Sequence[PathLike] = (),
    hold_out: float = 0.01,
    shape: str = "small",
    tokenizer: str | None = None,
    overrides: dict[str, Any] | None = None,
    config: TrainConfig | None = None,
    resume: bool = False,
    cache: PathLike | None = None,
    backend: str = "auto",
    device: str | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    teacher: PathLike | Sequence[PathLike] | None = None,
    auto: Collection[str] | None = None,
) -> dict[str, Any]:
    """Train a model on files, folders and globs, into the directory `out`; its last figures (`language.fit_text`).

    Args:
        valid: held-out text; without it the fraction `hold_out` of the documents in `data`.
        shape: a preset's name, `overrides` fields of its ModelConfig to replace.
        tokenizer: bytes, chars, bpe:SIZE or the path of a tokenizer.json; None: what suits the preset's vocabulary.
        resume: resume the run in `out`, whose model and tokenizer it takes; the data must be given again.
        teacher: directory of a model with the same tokenizer, for `config.distill`, or of several: the mean of their
            probabilities is learned.
        cache: where tokenised text is kept for the next run; None: `~/.cache/spikegpt`.
        auto: pick precision, backend, batch_size and accumulate for this machine, but for those named here.
    """
    config = config or TrainConfig()
    out = Path(out)
    refuse_running(out)
    if resume:
        model_config, made = _of_run(out)
    else:
        refuse_existing(out)
        wanted = preset(shape, **(overrides or {}))
        made = make_tokenizer(tokenizer or _suited(wanted), [*data, *valid])
        model_config = _with_vocabulary(wanted, made, "vocab_size" in (overrides or {}))
    teachers = load_teachers(teacher, model_config, made)
    if auto is not None:
        machine = Machine.found(device)
        choice = as_begun(out, config, auto, backend, machine.processes) if resume else None
        config, backend, reasons = choice or choose(model_config, config, auto, backend, machine)
        if progress and os.environ.get("RANK", "0") == "0":
            print(*(f"auto: {reason}" for reason in reasons), sep="\n", file=sys.stderr)
    corpus = prepare(data, made, cache, valid=hold_out, valid_paths=valid, progress=progress)
    torch.manual_seed(config.seed)
    model = SpikeGPT(model_config, backend=backend)
    return fit_text(
        model, made, corpus.train, corpus.valid, config, out,
        resume=resume, progress=progress, tensorboard=tensorboard, device=device, teachers=teachers,
    )  # fmt: skip


def make_tokenizer(name: str, data: Sequence[PathLike]) -> Tokenizer:
    """The tokenizer called bytes, chars or bpe:SIZE, learned from `data` where it must be, or read from a file."""
    kind, _, size = name.partition(":")
    if name == "bytes":
        return ByteTokenizer()
    if name == "chars":
        return CharTokenizer.from_texts(documents(map(Path, data)))
    if kind == "bpe" and size.isdecimal():
        return train_bpe((piece for text in documents(map(Path, data)) for piece in pieces(text, PIECE)), int(size))
    if Path(name).exists():
        return load_tokenizer(Path(name))
    raise UsageError(f"no tokenizer {name!r}: it is bytes, chars, bpe:SIZE (as bpe:4096) or a tokenizer.json")


def _of_run(out: Path) -> tuple[ModelConfig, Tokenizer]:
    checkpoint = checkpoint_of(out)
    return read_config(checkpoint), load_tokenizer(checkpoint)


def _suited(config: ModelConfig) -> str:
    return "bytes" if config.vocab_size == ByteTokenizer.vocab_size else f"bpe:{config.vocab_size}"


def _with_vocabulary(config: ModelConfig, tokenizer: Tokenizer, chosen: bool) -> ModelConfig:
    """`config` with the tokenizer's vocabulary, unless a size was chosen that has room for it."""
    if chosen and config.vocab_size < tokenizer.vocab_size:
        raise UsageError(
            f"vocab_size={config.vocab_size} is below the tokenizer's {tokenizer.vocab_size}; leave it out"
        )
    size = config.vocab_size if chosen else tokenizer.vocab_size
    return ModelConfig.from_dict({**config.to_dict(), "vocab_size": size})

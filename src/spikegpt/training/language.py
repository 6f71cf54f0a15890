"""Language modelling: what `fit` needs to train a model to predict the next token of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import TrainConfig
from ..data.batches import Streams, Windows
from ..data.token_file import TokenFile
from ..errors import UsageError
from ..evaluation import bits_on_tokens
from ..model.spikegpt import SpikeGPT
from ..tokenizer import Tokenizer
from .loop import fit
from .objective import NextToken
from .processes import make_accelerator
from .run import Metrics


def fit_text(
    model: SpikeGPT, tokenizer: Tokenizer, train: TokenFile, valid: TokenFile | None, config: TrainConfig, out: Path, *,
    resume: bool = False, progress: bool = True, tensorboard: bool = False, device: str | None = None,
    teachers: Sequence[SpikeGPT] = (),
) -> Metrics:  # fmt: skip
    """Train `model` in place to predict the tokens of `train`, and evaluate it on `valid`; see `loop.fit`.

    Args:
        device: None: a GPU if there is one, else the CPU; "cpu": the CPU.
        teachers: models of the same tokenizer that are learned from too: the mean of their probabilities
            (`config.distill`), the residuals of the first (`config.match`).
    Returns:
        The last figures: step, tokens, loss, bits_per_byte and spike_rate (on held-out text), interrupted, ...
    Raises:
        UsageError: the settings cannot work. UserError: the loss diverges, or the disk is full.
    """
    accelerator = make_accelerator(config, device)
    check_teachers(model, teachers, config)
    if valid is not None and valid.n_tokens < 2:
        raise UsageError(f"the held-out text has {valid.n_tokens} tokens and needs 2; hold out more, or nothing at all")
    for file in (train, valid):
        if file is not None:
            file.check(model.config.vocab_size)
    for teacher in teachers:
        teacher.to(accelerator.device).eval()
    reader = Streams if config.carry_state else Windows
    batches = reader(
        train, config.batch_size, config.context or model.config.context, config.seed,
        rank=accelerator.process_index, world=accelerator.num_processes,
    )  # fmt: skip
    batches.step = config.skip
    model.tokenizer = tokenizer
    files = {"train": train, "valid": valid}
    last = fit(
        model, batches, NextToken(model, config, teachers),
        None if valid is None else lambda whole: _evaluate(whole, valid, config),
        config, out, accelerator=accelerator,
        identity={name: _identity(file) for name, file in files.items() if file is not None},
        resume=resume, progress=progress, tensorboard=tensorboard,
    )  # fmt: skip
    return last | {
        "bits_per_byte": last.get("valid_bits_per_byte"),
        "spike_rate": last.get("valid_spike_rate", last["spike_rate"]),
    }


def check_teachers(model: SpikeGPT, teachers: Sequence[SpikeGPT], config: TrainConfig) -> None:
    """UsageError where the teachers and the weights of their part in the loss do not go together."""
    if bool(teachers) != bool(config.distill or config.match):
        raise UsageError("a teacher and a distill or match weight above 0 go together; give both or neither")
    if config.match and _residuals(teachers[0]) != _residuals(model):
        raise UsageError(
            f"match compares the residuals of {_residuals(model)} with the teacher's, which are {_residuals(teachers[0])}; "
            "take a teacher of the same shape, or match 0"
        )


def _evaluate(model: SpikeGPT, valid: TokenFile, config: TrainConfig) -> Metrics:
    """Bits per byte of the first `eval_tokens` held-out tokens in float32, the state carried through them, as `eval` does."""
    count = min(config.eval_tokens or valid.n_tokens, valid.n_tokens)
    ids = np.asarray(valid.ids[:count])
    assert model.tokenizer is not None
    measured = bits_on_tokens(model, ids, model.tokenizer.text_bytes(ids))
    return {
        "valid_loss": measured.bits_per_token * math.log(2),
        "valid_bits_per_byte": measured.bits_per_byte,
        "valid_bits_per_token": measured.bits_per_token,
        "valid_spike_rate": measured.spike_rate,
    }


def _residuals(model: SpikeGPT) -> str:
    return f"{model.config.n_layer} blocks x {model.config.n_embd} channels"


def _identity(file: TokenFile) -> dict[str, Any]:
    return {"tokens": file.n_tokens, "bytes": file.n_bytes, "hash": file.hash}

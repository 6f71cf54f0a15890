"""A run of `spikify_by_block`: what stays the same from part to part, and where its files are."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import has_weights, read_config, resolve, weight_files
from ..config import ModelConfig, TrainConfig
from ..convert import convert
from ..convert.names import check
from ..convert.stored import Stored, read_safetensors
from ..data.batches import Windows
from ..data.tokens import Corpus, prepare
from ..errors import UsageError
from ..files import read_json, remove_directory, write_json
from ..loading import usable
from ..tokenizer import Tokenizer, load_tokenizer
from .by_block_plan import HELD_OUT, event_config
from .lock import leave_empty
from .residuals import Residuals

PathLike = str | os.PathLike[str]

WORK = "blocks"
"""In the run's directory: what is needed until all parts are done."""
_SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that stays the same from part to part."""

    out: Path
    stored: dict[str, Stored]
    """The original's tensors, in their files."""
    original: ModelConfig
    student: ModelConfig
    tokenizer: Tokenizer
    corpus: Corpus
    config: TrainConfig
    batches: int
    """To train on."""
    held_out: int
    """To measure on, behind them."""
    device: torch.device

    @property
    def context(self) -> int:
        """Tokens of a sequence."""
        return self.config.context or self.original.context

    def ids(self, batch: int) -> tuple[Tensor, Tensor]:
        """Ids [B, T] of a batch and the ids that follow them; those from `batches` on are held-out text."""
        file, step = (self.corpus.train, batch) if batch < self.batches else (self.corpus.valid, batch - self.batches)
        assert file is not None
        windows = Windows(file, self.config.batch_size, self.context, self.config.seed)
        windows.step = step
        return windows.next_batch()

    def residuals(self, who: str, index: int) -> Residuals:
        """What part `index` reads, of the "original" or of the "student"."""
        shape = self.batches + self.held_out, self.config.batch_size, self.context, self.original.n_embd
        return Residuals(self.path(who, index), shape)

    def path(self, who: str, index: int) -> Path:
        """Where that is kept; before the first part both read the same."""
        return self.out / WORK / f"{who if index else 'both'}-{index:02d}.bfloat16"

    def part(self, index: int) -> Path:
        """Where the finished part is kept; its row of the report has the same name and another suffix."""
        return self.out / WORK / f"part-{index:02d}.safetensors"

    def done(self, index: int) -> bool:
        """Whether a part is finished."""
        return self.part(index).with_suffix(".json").exists()

    def autocast(self) -> torch.autocast:
        """Mixed precision, as `config` says."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")


def open_job(
    source: Path, out: Path, data: Sequence[PathLike], valid: Sequence[PathLike], activity: float, event: dict[str, Any],
    config: TrainConfig, tokens: int, cache: PathLike | None, device: str | None, progress: bool,
) -> Job:  # fmt: skip
    """Open the model and the text; what a resumed run must have in common with the one that began is written or compared."""
    if config.precision == "fp16":
        raise UsageError("precision fp16 needs a scaler for its gradients, which there is not part by part; use bf16")
    if source.is_file():
        converted = out / WORK / "original"
        if not has_weights(converted):
            convert(source, converted, kind="rwkv4")
        source = converted
    source = resolve(source)
    original = dataclasses.replace(read_config(source), dropout=0.0)
    if original.spikes != "none" or original.spike_embedding:
        raise UsageError(
            f'{source} has spikes="{original.spikes}"; only a continuous model is made event-driven by block'
        )
    stored = {name: tensor for path in weight_files(source) for name, tensor in read_safetensors(path).items()}
    check(source, stored, original)
    tokenizer = load_tokenizer(source)
    student = event_config(original, activity, event)
    corpus = prepare(data, tokenizer, cache, valid_paths=valid, progress=progress)
    batches = max(1, tokens // (config.batch_size * (config.context or original.context)))
    held_out = max(1, round(batches * HELD_OUT))
    job = Job(out, stored, original, student, tokenizer, corpus, config, batches, held_out, usable(device))
    if corpus.valid is None or corpus.valid.n_tokens <= job.context:
        raise UsageError(
            f"the held-out text is shorter than a window of {job.context} tokens; give more text, or --valid"
        )
    (out / WORK).mkdir(parents=True, exist_ok=True)
    settings = {
        "model": student.to_dict(),
        "train": {**config.to_dict(), "log_every": None},  # how much is told changes nothing
        "tokens": tokens,
        "text": [corpus.train.hash, corpus.valid.hash],
        "weights": sum(tensor.nbytes for tensor in stored.values()),
    }
    kept = out / WORK / _SETTINGS
    if kept.exists():
        before = read_json(kept)
        if changed := [name for name in settings if before.get(name) != settings[name]]:
            raise UsageError(f"{out} was begun with other settings ({', '.join(changed)}); resume with the same")
    else:
        write_json(kept, settings)
    return job


def is_begun(out: Path) -> bool:
    """Whether `out` holds a run that can be resumed."""
    return (out / WORK / _SETTINGS).exists()


def leave_unbegun(out: Path) -> None:
    """Take away what a run that could not begin has put into `out`."""
    if is_begun(out):
        return
    if (out / WORK).exists():
        remove_directory(out / WORK)
    leave_empty(out)

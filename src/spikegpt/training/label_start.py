"""What a classifier is made from: a model to start with, and what a teacher says of the training rows."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import torch

from ..config import FIRST_EMPHASIS, PRESETS, EventConfig, ModelConfig, Spikes, preset
from ..data.labelled import Rows, label_counts
from ..errors import UsageError, UserError
from ..loading import load
from ..model.classifier import Classifier
from ..model.spikegpt import SpikeGPT
from ..task import FinetuneConfig, TaskConfig
from ..tokenizer import CharTokenizer, Tokenizer, train_bpe
from .recipe import make_tokenizer

PathLike = str | os.PathLike[str]

HEAD_EMPHASIS = 30.0
"""Emphasis on a classifier's head: its K rows are so few weights that its neurons may all fire."""
_SHAPE = re.compile(r"(\d+)x(\d+)")


class Start:
    """The model that a classifier starts from."""

    def __init__(
        self, name: str | None, spikes: Spikes, tokenizer: str | None, config: FinetuneConfig, rows: Rows
    ) -> None:
        self._config, self._source = config, None
        scratch = name is not None and name.startswith("scratch:")
        if tokenizer is not None and not scratch:
            raise UsageError("--tokenizer goes with --model scratch:SHAPE; a trained model keeps its own")
        if scratch:
            assert name is not None
            self._shape = _scratch(name.removeprefix("scratch:"), spikes, config.activity)
            self.tokenizer: Tokenizer = _tokenizer(tokenizer, rows)
        else:
            self._source = load(name, engine="float")
            if self._source.tokenizer is None:
                raise UsageError(f"{name} has no tokenizer; convert it again with --tokenizer")
            self.tokenizer = self._source.tokenizer
        if config.lm and (self._source is None or self._source.config.task is not None):
            raise UsageError("lm needs a language model to start from, whose head predicts the next token")

    def build(self, task: TaskConfig) -> SpikeGPT:
        """A new classifier with the start's weights."""
        torch.manual_seed(self._config.seed)
        if self._source is None:
            model = SpikeGPT(dataclasses.replace(self._shape, vocab_size=self.tokenizer.vocab_size, task=task))
        else:
            before = self._source.config
            event = before.event and _events(before.event, self._config.activity)
            model = SpikeGPT(dataclasses.replace(before, task=task, event=event))
            anew = ("head.weight", "lookup.weight")
            kept = {name: tensor for name, tensor in self._source.state_dict().items() if name not in anew}
            model.load_state_dict(kept, strict=False)
        model.tokenizer = self.tokenizer
        return model

    def language_model(self) -> SpikeGPT | None:
        """The language model itself, where its loss has a weight."""
        return self._source if self._config.lm else None


def _events(event: EventConfig, activity: float | None) -> EventConfig:
    emphasis = {**(FIRST_EMPHASIS if event.emphasis is None else event.emphasis), "head": HEAD_EMPHASIS}
    activity = activity or event.activity
    start = max(activity, event.activity)
    return dataclasses.replace(event, activity=activity, start_activity=start, emphasis=emphasis)


def _scratch(shape: str, spikes: Spikes, activity: float | None) -> ModelConfig:
    """`shape` is a preset's name, or LAYERSxCHANNELS."""
    activity = activity or 0.1
    event = None
    if spikes == "before":
        event = EventConfig(
            activity=activity, start_activity=max(0.3, activity), emphasis=FIRST_EMPHASIS | {"head": HEAD_EMPHASIS}
        )
    if match := _SHAPE.fullmatch(shape):
        return ModelConfig(n_layer=int(match[1]), n_embd=int(match[2]), spikes=spikes, event=event)
    if shape not in PRESETS:
        raise UsageError(f"scratch:{shape} is neither LAYERSxCHANNELS (scratch:2x256) nor one of {', '.join(PRESETS)}")
    return (
        preset(shape, spikes=spikes)
        if event is None
        else dataclasses.replace(preset(shape, spikes=spikes), event=event)
    )


def _tokenizer(name: str | None, rows: Rows) -> Tokenizer:
    if name is None:
        shipped = load(engine="float").tokenizer
        assert shipped is not None
        return shipped
    texts = [part for text in rows.texts for part in ((text,) if isinstance(text, str) else text)]
    if name == "chars":
        return CharTokenizer.from_texts(texts)
    if name.startswith("bpe:") and name[4:].isdecimal():
        return train_bpe(texts, int(name[4:]))
    return make_tokenizer(name, [])


def taught_by(teacher: PathLike | None, rows: Rows, task: TaskConfig) -> np.ndarray | None:
    """A teacher's probabilities [N, K] for the training rows (of a regression, standardised answers)."""
    if teacher is None:
        return None
    path, wanted = Path(teacher), (len(rows.texts), len(task.labels))
    if path.is_dir():
        other = Classifier(load(path, engine="float"))
        if other.task.kind != task.kind or (task.kind != "regression" and other.task.labels != task.labels):
            raise UsageError(f"the teacher {path} has other labels than {rows.source}")
        found = other.probabilities(rows.texts)
        return (found - task.offset) / task.scale if task.kind == "regression" else found
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"the teacher {path} is neither a classifier's directory nor a .npy of numbers: {error}"
        ) from None
    if found.shape != wanted:
        raise UsageError(
            f"the teacher {path} is {list(found.shape)}; {rows.source} needs {list(wanted)}: a row each, K labels"
        )
    if not np.isfinite(found).all():
        raise UsageError(f"the teacher {path} has NaN or infinite numbers")
    if task.kind == "single" and (found.min() < 0 or abs(found.sum(1) - 1).max() > 1e-3):
        raise UsageError(f"the teacher {path} has rows that are no probabilities: they must sum to 1")
    return (found - task.offset) / task.scale if task.kind == "regression" else found


def class_weights(rows: Rows, task: TaskConfig) -> torch.Tensor:
    """[K] inverse frequencies, 1 on average over the rows."""
    if task.kind == "regression":
        raise UsageError("class weights are for labels, not for a regression")
    counts = label_counts(rows)
    frequency = torch.tensor([max(counts[name], 1) for name in task.labels], dtype=torch.float32)
    return len(rows.texts) / (len(task.labels) * frequency)

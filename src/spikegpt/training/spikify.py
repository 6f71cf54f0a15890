"""From a continuous model (an RWKV-4) to an event-driven one, or on to less activity: thresholds, then a fine-tuning."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import EventConfig, ModelConfig, TrainConfig
from ..convert import convert
from ..data.batches import Windows
from ..data.tokens import prepare
from ..errors import UsageError
from ..loading import load, load_teachers
from ..model.sites import sites
from ..model.spikegpt import SpikeGPT
from .language import fit_text
from .lock import refuse_existing, refuse_running
from .thresholds import ROUNDS, calibrate

PathLike = str | os.PathLike[str]

START = 0.5
"""Activity at which the fine-tuning begins."""


def spikify(
    source: PathLike,
    out: PathLike,
    *,
    data: Sequence[PathLike],
    activity: float = 0.15,
    valid: Sequence[PathLike] = (),
    event: EventConfig | dict[str, Any] | None = None,
    config: TrainConfig | None = None,
    teacher: PathLike | Sequence[PathLike] | None = None,
    resume: bool = False,
    cache: PathLike | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Make the continuous model `source` event-driven, into the run directory `out`; the run's last figures.

    The weights are kept, a neuron is put in front of every matrix, its threshold set from `data`, and everything
    fine-tuned with a teacher (`config.distill`, `config.match`) while the activity falls to `activity`. A `source` that
    is event-driven already keeps its thresholds and continues from its own activity.

    Args:
        source: directory of a model with spikes="none" or "before", or a file that `convert` reads.
        activity: fraction of the weights to be read per token, in (0, 1].
        event: everything else about the neurons; or, as a dictionary, only the fields of it that are not to be those of
            `source`, or where that is continuous the defaults.
        config: the fine-tuning; by default 500 steps that learn nine parts from the teacher's predictions and one from
            the text, and are drawn to the teacher's residuals.
        teacher: directory of a model with the same tokenizer that is learned from, or of several: the mean of their
            probabilities and the residuals of the first; None: the original, if it is continuous.
        resume: resume the fine-tuning in `out`; everything else must be given again.
        data, valid: files, folders and globs. cache: where tokenised text is kept; None: `~/.cache/spikegpt`.
    Raises:
        UsageError: `source` has neurons after its mixes or no teacher, or `data` is shorter than a context.
    """
    refuse_running(Path(out))
    if not resume:
        refuse_existing(Path(out))
    original = _read(Path(source))
    before = original.config.event
    if before is not None and teacher is None:
        raise UsageError(
            f"{source} is event-driven already; give the continuous model that it came from as the teacher"
        )
    neurons = event if isinstance(event, EventConfig) else neurons_of(original.config, activity, event or {})
    neurons = dataclasses.replace(neurons, activity=activity)
    check_shared(original.config, neurons)
    tokenizer = original.tokenizer
    if tokenizer is None:
        raise UsageError(f"{source} has no tokenizer; convert it again with --tokenizer")
    config = config or default_config()
    corpus = prepare(data, tokenizer, cache, valid_paths=valid, progress=progress)
    student = event_driven(original, neurons)
    teachers = [original] if teacher is None else load_teachers(teacher, student.config, tokenizer)
    if not resume and before is None:
        torch.manual_seed(config.seed)
        context = config.context or original.config.context
        settle_thresholds(student, original, Windows(corpus.train, config.batch_size, context, config.seed))
    return fit_text(
        student, tokenizer, corpus.train, corpus.valid, config, Path(out),
        resume=resume, progress=progress, teachers=teachers if config.distill or config.match else (),
    )  # fmt: skip


def default_config() -> TrainConfig:
    """The fine-tuning unless it is said otherwise."""
    return TrainConfig(steps=500, lr=2e-3, warmup=20, distill=0.9, match=2.0)


def neurons_of(source: ModelConfig, activity: float, changed: dict[str, Any]) -> EventConfig:
    """The neurons of `source`, or the default ones, with fields changed; they begin at its activity, or at `START`."""
    kept = {} if source.event is None else dataclasses.asdict(source.event)
    start = max(activity, START if source.event is None else source.event.activity)
    fields = {**kept, "activity": activity, "start_activity": start, **changed}
    made = ModelConfig.from_dict({**source.to_dict(), "spikes": "before", "event": fields}).event
    assert made is not None
    check_shared(source, made)
    return made


def check_shared(source: ModelConfig, event: EventConfig) -> None:
    """UsageError unless `source` shares the events of its time mixes where `event` does: weights behind three token shifts do
    not become those behind one."""
    if event.shared != (source.event is not None and source.event.shared):
        raise UsageError(
            f"event.shared={event.shared} is not how the model was trained, and its key, value and receptance cannot be "
            "made so; leave event.shared as it is, or train from random weights"
        )


def event_driven(model: SpikeGPT, event: EventConfig) -> SpikeGPT:
    """A copy with a neuron in front of every matrix; thresholds are those of the model, or not set yet if it has none."""
    fields = {**model.config.to_dict(), "spikes": "before", "event": event}
    copy = SpikeGPT(ModelConfig.from_dict(fields))
    copy.load_state_dict(model.state_dict(), strict=False)
    copy.tokenizer = model.tokenizer
    return copy


def settle_thresholds(student: SpikeGPT, original: SpikeGPT, windows: Windows, rounds: int = ROUNDS) -> None:
    """Set the thresholds of `student` for the activity at the start, on `rounds` batches of text and one more."""
    matrices = (site.name for site in sites(student.config))
    neurons = dict(zip(matrices, student.event_neurons(), strict=True))

    def next_input() -> tuple[Tensor, Tensor]:
        ids = windows.next_batch()[0]
        return ids, ids

    calibrate(student, original, neurons, next_input, rounds)


def _read(source: Path) -> SpikeGPT:
    if source.is_file():
        with tempfile.TemporaryDirectory() as folder:
            convert(source, Path(folder) / "model", kind="rwkv4")
            return _read(Path(folder) / "model")
    model = load(str(source), engine="float")
    if model.config.spikes == "after":
        raise UsageError(
            f'{source} has spikes="after"; spikify starts from a continuous model '
            "(an RWKV-4, or one trained with --spikes none) or an event-driven one"
        )
    model.config = dataclasses.replace(model.config, dropout=0.0)
    return model.eval()

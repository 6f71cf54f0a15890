"""The callback that `Trainer` needs for an event-driven model."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..model.spikegpt import SpikeGPT


class AdaptThresholds(TrainerCallback):
    """After each step, lets the thresholds of an event-driven model (`spikes="before"`) follow their target activity.

    >>> Trainer(model, args, train_dataset=data, callbacks=[AdaptThresholds()])
    """

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Called by `Trainer` before a step: targets and jumps depend on the progress of the training."""
        _core(model).set_progress(state.global_step / max(state.max_steps, 1))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Called by `Trainer` after the optimiser's step."""
        _core(model).after_step()


def _core(model: Any) -> SpikeGPT:
    return getattr(model, "module", model).spikegpt

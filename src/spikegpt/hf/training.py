"""What `Trainer` must do for an event-driven model beside stepping its optimiser."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class AdaptThresholds(TrainerCallback):
    """After each step, lets the thresholds of an event-driven model (`spikes="before"`) follow their target activity.

    >>> Trainer(model, args, train_dataset=data, callbacks=[AdaptThresholds()])
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Called by `Trainer` once the optimiser has moved the weights."""
        model = getattr(model, "module", model)
        model.spikegpt.after_step()

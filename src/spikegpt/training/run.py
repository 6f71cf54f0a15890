"""A training run between two of its steps: everything that changes, and the verbs that change it."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..checkpoint import latest_checkpoint
from ..config import TrainConfig
from ..data.batches import Batches
from ..errors import UserError
from ..model.meter import SpikeMeter
from ..model.spikegpt import SpikeGPT
from .objective import Objective
from .optim import lr_at, make_optimizer
from .processes import gathering, share_events
from .sharding import full, shard, whole_model

Metrics = dict[str, Any]
"""Figures of a training run by name, in JSON values."""


@dataclass
class Run:
    """The model, its optimiser and its place in the data, on the devices of `accelerator`."""

    accelerator: Accelerator
    model: SpikeGPT
    batches: Batches
    objective: Objective
    config: TrainConfig
    out: Path
    identity: dict[str, Any]
    """What the data is, in JSON values: a run is resumed only with the same."""
    step: int = 0
    """Optimiser steps taken."""
    last: Metrics = field(default_factory=dict)
    """The newest figure of each name, for the result."""
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last report."""
    best: float | None = None
    """Least held-out loss so far."""
    worse: int = 0
    """Evaluations since then."""

    def __post_init__(self) -> None:
        self.model.gradient_checkpointing = self.config.recompute
        if self.config.shard:
            shard(self.model)
            self.wrapped = self.objective
        else:
            self.wrapped = self.accelerator.prepare_model(self.objective)
        self.optimizer = make_optimizer(self.model, self.config)
        self.stepper = self.accelerator.prepare_optimizer(self.optimizer)
        self._unread: list[Tensor] = []

    @property
    def described(self) -> dict[str, Any]:
        """What must be the same for the run to be resumed, in JSON values."""
        return described(self.config, self.identity, self.accelerator.num_processes)

    @property
    def step_tokens(self) -> float:
        """Tokens in a step of all processes, on average."""
        return self.batches.batch_tokens * self.config.accumulate

    @property
    def tokens(self) -> int:
        """Tokens read so far."""
        return round(self.step * self.step_tokens)

    @property
    def done(self) -> bool:
        """Whether no step is left, or patience has run out."""
        return self.step >= self.config.steps or 0 < self.config.patience <= self.worse

    def whole(self) -> SpikeGPT | None:
        """The model with all its weights in the main process, None elsewhere; every process must call it."""
        main = self.accelerator.is_main_process
        return whole_model(self.model, keep=main) if self.config.shard else self.model if main else None

    def one_step(self, *, measure: bool) -> tuple[Tensor, float | None]:
        """One optimiser step: norm of the gradient before clipping, and the spike rate if measured."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.step, config)
        self.model.set_progress(self.step / config.steps)
        losses = []
        # Hooks do not run inside a compiled model.
        meter = SpikeMeter(self.model) if measure and not config.compile else None
        for part in range(config.accumulate):
            begins = self.batches.begins
            batch = [tensor.to(accelerator.device, non_blocking=True) for tensor in self.batches.next_batch()]
            last = part == config.accumulate - 1
            with gathering(accelerator, self.wrapped, self.model, sharded=config.shard, last=last):
                with meter if meter is not None and part == 0 else contextlib.nullcontext(), accelerator.autocast():
                    objective, loss = self.wrapped(*batch, begins=begins)
                accelerator.backward(objective / config.accumulate)
            losses.append(loss)
        norm: Any = accelerator.clip_grad_norm_(self.model.parameters(), config.clip or math.inf)
        self.stepper.step()
        self.stepper.zero_grad()
        share_events(accelerator, self.model)
        self.model.after_step()
        self.step += 1
        self._unread.append(torch.stack(losses).mean())
        return full(norm), meter.rate if meter is not None else None  # pyright: ignore[reportReturnType]

    def read_losses(self, norm: Tensor, stopping: bool) -> bool:
        """Bring the losses to the CPU, the same in every process; whether any process is `stopping`.

        UserError: training has diverged.
        """
        asked = torch.tensor(float(stopping), device=self.accelerator.device)
        shared = self.accelerator.reduce(torch.stack([asked, *self._unread]), "mean")
        anyone, *losses = shared.tolist()  # pyright: ignore[reportAttributeAccessIssue]
        self._unread.clear()
        if not all(map(math.isfinite, losses)):
            raise UserError(self._diverged("loss"))
        # The scaler of fp16 skips steps with an infinite gradient by itself.
        if self.accelerator.scaler is None and not math.isfinite(float(norm)):
            raise UserError(self._diverged("gradient"))
        self.losses += losses
        return anyone > 0

    def _diverged(self, what: str) -> str:
        path = latest_checkpoint(self.out)
        return (
            f"the {what} became infinite or NaN by step {self.step}; "
            f"{f'the last good checkpoint is {path}' if path else 'there is no checkpoint yet'}; "
            f"try a lower lr than {self.config.lr:g}, a longer warmup, a smaller clip or precision no"
        )


def described(config: TrainConfig, identity: dict[str, Any], processes: int) -> dict[str, Any]:
    """What must be the same for a run to be resumed, in JSON values."""
    return {"train": config.to_dict(), "data": identity, "processes": processes}

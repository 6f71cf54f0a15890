"""Objectives: the loss of a model on a batch, and the state carried to the next. B batch, T tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..model.spikegpt import SpikeGPT
from ..model.state import State
from .loss import distillation, loss_fn, mismatch, mixture


class Objective(nn.Module):
    """The model and its loss as one module, so that precision and processes wrap both and leave the model as it is.

    `objective(*batch, begins=...)` gives what to minimise and the loss to report, the second without a graph; `begins`
    is that of the batch (`data.Batches`).
    """

    def __init__(self, model: SpikeGPT) -> None:
        super().__init__()
        self.model = model

    def named_carried(self) -> dict[str, Tensor]:
        """Tensors [B, ...] that the next batch depends on beside the weights, by names that begin with `carried.`."""
        return {}

    def load_carried(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `named_carried`."""


class NextToken(Objective):
    """Cross entropy of each next token, with the predictions and residuals of teachers beside it if there are any."""

    def __init__(self, model: SpikeGPT, config: TrainConfig, teachers: Sequence[SpikeGPT] = ()) -> None:
        super().__init__(model)
        self.distill, self.match = (config.distill, config.match) if teachers else (0.0, 0.0)
        self.penalty = config.logit_penalty
        self.carries = config.carry_state
        # A list hides the compiled model and the teachers from named_parameters.
        self._readers: list[Any] = [torch.compile(model) if config.compile else model, *teachers]
        self.carried: list[State | None] = [None] * len(self._readers)
        """What the model and its teachers remember of the batch before, detached from its autograd graph."""

    def forward(self, inputs: Tensor, targets: Tensor, begins: bool = True) -> tuple[Tensor, Tensor]:
        """What to minimise, and the text's own loss in nats per token, of inputs [B, T] at targets [B, T], int64: scalars.

        Unless `begins`, the inputs continue those of the last batch.
        """
        logits, residuals = self._read(0, inputs, begins)
        loss = loss_fn(logits, targets, self.penalty)
        if self.distill == self.match == 0:
            return loss, loss.detach()
        with torch.no_grad():
            read = [self._read(teacher, inputs, begins) for teacher in range(1, len(self._readers))]
        taught, theirs = zip(*read, strict=True)
        objective = (1 - self.distill) * loss
        if self.distill:
            objective = objective + self.distill * distillation(logits, mixture(taught))
        if self.match:
            objective = objective + self.match * mismatch(residuals, theirs[0])
        return objective, loss.detach()

    def _read(self, reader: int, inputs: Tensor, begins: bool) -> tuple[Tensor, list[Tensor]]:
        state = None if begins else self.carried[reader]
        residuals: list[Tensor] = []
        logits, state = self._readers[reader](inputs, state, residuals if self.match and reader < 2 else None)
        if self.carries:
            # Copies: a view of the last token would keep the whole batch's activations.
            self.carried[reader] = state.map(lambda tensor: tensor.detach().clone())
        return logits, residuals

    def named_carried(self) -> dict[str, Tensor]:
        """The carried states' tensors by name."""
        return {
            f"carried.{reader}.{name}": tensor
            for reader, state in enumerate(self.carried)
            if state is not None
            for name, tensor in state.named().items()
        }

    def load_carried(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `named_carried`."""
        for reader in range(len(self.carried)):
            prefix = f"carried.{reader}."
            mine = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            self.carried[reader] = State.from_named(mine) if mine else None

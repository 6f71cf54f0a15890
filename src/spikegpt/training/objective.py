"""What one batch asks of a model: its loss, and the state to go on from. B batch, T tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..model.spikegpt import SpikeGPT
from ..model.state import State
from .loss import distillation, loss_fn, mismatch


class Objective(nn.Module):
    """The model and its loss as one module, so that precision and processes wrap both and leave the model as it is."""

    def __init__(self, model: SpikeGPT, config: TrainConfig, teacher: SpikeGPT | None) -> None:
        super().__init__()
        self.model = model
        self.distill, self.match = (config.distill, config.match) if teacher is not None else (0.0, 0.0)
        self.penalty = config.logit_penalty
        self.carries = config.carry_state
        self.carried: list[State | None] = [None, None]
        """What the model and its teacher remember of the batch before, cut off from its graph."""
        # A list hides the compiled twin and the teacher from named_parameters.
        self._readers: list[Any] = [torch.compile(model) if config.compile else model, teacher]

    def forward(self, inputs: Tensor, targets: Tensor, begins: bool = True) -> tuple[Tensor, Tensor]:
        """What to minimise, and the text's own loss, of inputs [B, T] at targets [B, T]: scalars, the second without a graph.

        Where no text `begins`, the inputs go on from the last batch.
        """
        logits, residuals = self._read(0, inputs, begins)
        loss = loss_fn(logits, targets, self.penalty)
        if self.distill == self.match == 0:
            return loss, loss.detach()
        with torch.no_grad():
            taught, teachers = self._read(1, inputs, begins)
        objective = (1 - self.distill) * loss
        if self.distill:
            objective = objective + self.distill * distillation(logits, taught)
        if self.match:
            objective = objective + self.match * mismatch(residuals, teachers)
        return objective, loss.detach()

    def _read(self, reader: int, inputs: Tensor, begins: bool) -> tuple[Tensor, list[Tensor]]:
        state = None if begins else self.carried[reader]
        residuals: list[Tensor] = []
        logits, state = self._readers[reader](inputs, state, residuals if self.match else None)
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
        """The reverse of `named_carried`."""
        for reader in (0, 1):
            prefix = f"carried.{reader}."
            mine = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            self.carried[reader] = State.from_named(mine) if mine else None

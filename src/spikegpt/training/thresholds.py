"""Where thresholds begin when a continuous model becomes event-driven: from what its matrices read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..model.layers import Linear
from ..model.neurons import EventNeuron, adapt

ROUNDS = 40
"""Batches over which thresholds settle before the fine-tuning."""


@torch.no_grad()
def calibrate(
    student: nn.Module,
    original: nn.Module,
    neurons: Mapping[str, EventNeuron],
    next_input: Callable[[], tuple[Tensor, Tensor]],
    rounds: int = ROUNDS,
) -> None:
    """Set every threshold for the activity at the start: from what the original's matrices read, then from own firing.

    Args:
        student, original: the event-driven module, which is left in training mode, and the continuous one of its shape.
        neurons: those of the student, by the name of their matrix in either module.
        next_input: each call gives a batch's input, for the student and for the original.
    """
    for neuron in neurons.values():
        neuron.set_progress(0.0)
    for name, threshold in _input_quantiles(original, neurons, next_input()[1]).items():
        neuron = neurons[name]
        neuron.threshold.copy_(threshold)
        neuron.unit.copy_(threshold / neuron.config.resolution)
    student.train()
    for _ in range(rounds):
        student(next_input()[0])
        adapt([*neurons.values()])


def _input_quantiles(original: nn.Module, neurons: Mapping[str, EventNeuron], batch: Tensor) -> dict[str, Tensor]:
    """For each matrix, what the wanted fraction of its inputs in the original is above."""
    found: dict[str, Tensor] = {}

    def watch(name: str):
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            size = inputs[0].float().abs().flatten()
            size = size[:: max(1, size.numel() // 2**20)]  # torch.quantile takes at most 2^24 values
            found[name] = torch.quantile(size, 1 - neurons[name].target()).clamp(min=1e-6)

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name))
        for name, module in original.named_modules()
        if isinstance(module, Linear)
    ]
    original(batch)
    for handle in handles:
        handle.remove()
    return found

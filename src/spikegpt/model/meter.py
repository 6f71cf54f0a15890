"""How much a model fires: counted from the spikes themselves as the model runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

from .neurons import EventNeuron, Neuron


@dataclass(frozen=True)
class LayerActivity:
    """One layer of neurons over everything that was read while the meter ran."""

    name: str
    neurons: int
    rate: float
    """Fraction of neuron-steps with a spike."""
    dead: float
    """Fraction of neurons that never fired."""
    saturated: float
    """Fraction of neurons that always fired."""


@dataclass(frozen=True)
class SiteCounts:
    """What the neurons in front of one matrix did over everything that was read; counted from execution."""

    name: str
    """Of the neurons' module in the float model."""
    inputs: int
    outputs: int
    bits: int
    """Width of the matrix's weights."""
    steps: int
    """Tokens."""
    active: int
    """Events: inputs whose weights were read, over all tokens."""
    units: int
    """Sum of the events' sizes: spikes after expansion into unit spikes."""
    saturated: int
    """Events of the largest size."""
    fired: np.ndarray | None = field(default=None, compare=False)
    """[inputs] int64, events of each neuron, where neurons are counted."""

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read, without padding and scales."""
        return self.active * self.outputs * self.bits // 8


class SpikeMeter:
    """Counts the spikes of every neuron of a model inside a `with` block, or several.

    >>> with SpikeMeter(model) as meter:
    ...     model(ids)
    >>> meter.rate
    """

    def __init__(self, model: nn.Module) -> None:
        self._neurons = {name: module for name, module in model.named_modules() if isinstance(module, Neuron)}
        self._fired: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> SpikeMeter:
        for name, module in self._neurons.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str):
        def count(_module: nn.Module, _inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor | None]) -> None:
            spikes = output[0].detach()
            fired = torch.count_nonzero(spikes, dim=(0, 1))
            self._fired[name] = self._fired[name] + fired if name in self._fired else fired
            self._steps[name] = self._steps.get(name, 0) + spikes.shape[0] * spikes.shape[1]

        return count

    @property
    def rate(self) -> float:
        """Fraction of all neuron-steps with a spike; 0 for a model without neurons."""
        steps = sum(self._steps[name] * fired.numel() for name, fired in self._fired.items())
        return sum(int(fired.sum()) for fired in self._fired.values()) / steps if steps else 0.0

    @property
    def activity(self) -> float:
        """Fraction of the matrices' weights that were read: sum of (non-zero inputs x outputs) / sum of (inputs x outputs).

        1 for a model whose products read floats.
        """
        read = total = 0
        for name, fired in self._fired.items():
            neuron = self._neurons[name]
            if isinstance(neuron, EventNeuron):
                read += int(fired.sum()) * neuron.fan_out
                total += self._steps[name] * neuron.width * neuron.fan_out
        return read / total if total else 1.0

    def layers(self) -> list[LayerActivity]:
        """One row per layer of neurons, in the order of the model."""
        return [
            LayerActivity(
                name=name,
                neurons=fired.numel(),
                rate=int(fired.sum()) / (self._steps[name] * fired.numel()),
                dead=(fired == 0).float().mean().item(),
                saturated=(fired == self._steps[name]).float().mean().item(),
            )
            for name, fired in self._fired.items()
        ]

"""What a model computes per token beside its matrix products, and the floats that it moves.

C channels. Formulas follow the integer runtime's and the native operators' code, per value: a division by a constant
of the model (tau, unit, C) is a multiplication by its reciprocal; signs, selections and copies are free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..config import ModelConfig
from ..model.layers import ChannelMix, Linear, TimeMix
from ..model.neurons import LIF, EventNeuron, SpikeEmbedding
from ..model.spikegpt import Block, SpikeGPT


@dataclass(frozen=True)
class Operations:
    """Scalar operations in floating point."""

    multiplications: float = 0
    additions: float = 0
    """Additions, subtractions and roundings."""
    comparisons: float = 0
    exponentials: float = 0
    divisions: float = 0
    """Divisions and square roots."""

    def __add__(self, other: Operations) -> Operations:
        return Operations(*(a + b for a, b in zip(self._values, other._values, strict=True)))

    def __mul__(self, times: float) -> Operations:
        return Operations(*(value * times for value in self._values))

    @property
    def total(self) -> float:
        """All of them, each as one."""
        return sum(self._values)

    @property
    def _values(self) -> tuple[float, ...]:
        return dataclasses.astuple(self)

    def to_dict(self) -> dict[str, float]:
        """Plain JSON values under the fields' names."""
        return dataclasses.asdict(self)


SHIFT = Operations(multiplications=1, additions=2)
"""Token shift: last + mix * (now - last)."""
SIGMOID = Operations(additions=1, exponentials=1, divisions=1)
"""1 / (1 + exp(-x))."""
GATE = Operations(multiplications=1)
"""The gate times what it lets through."""
SQUARED_RELU = Operations(multiplications=1, comparisons=1)
"""max(x, 0)^2."""
WKV = Operations(multiplications=6, additions=8, comparisons=2, exponentials=2, divisions=1)
"""One step of the WKV average and of its state; of each pair of exponentials one is exp(0)."""
RESIDUAL = Operations(additions=1)
"""One sum into the residual."""
SPIKE = Operations(comparisons=1)
"""H(x)."""
LIF_STEP = Operations(multiplications=1, additions=2, comparisons=1)
"""V + (X - V) / tau, and its threshold."""
EVENT = Operations(multiplications=1, additions=2, comparisons=2)
"""min(ceil(max(|x| - threshold, 0) / unit), levels)."""
JUMP = Operations(comparisons=1)
"""0 where an event is smaller than the smallest that is sent."""
LEAK = Operations(multiplications=1, additions=1)
"""leak * M + x."""
HARD_RESET = Operations(comparisons=1)
"""0 where an event was, else H."""
SOFT_RESET = Operations(multiplications=1, additions=1)
"""H - n * unit."""
RESCALE = Operations(multiplications=1)
"""A sum of events times what an event of 1 stands for."""


def norm(channels: int) -> Operations:
    """A layer norm over C values: mean, variance, scale, gain and bias."""
    each = Operations(multiplications=3, additions=5)
    return each * channels + Operations(multiplications=2, additions=1, divisions=2)


@dataclass(frozen=True)
class Work:
    """Elementwise work of one kind at one place."""

    name: str
    """Of the module."""
    kind: str
    operations: Operations
    """Per token."""


def elementwise(config: ModelConfig) -> list[Work]:
    """Everything that a model of this shape computes per token outside its matrix products, in the order it is built."""
    return [
        Work(name, kind, operations)
        for name, module in _skeleton(config).named_modules()
        for kind, operations in _work(module, config)
    ]


def floats_moved(config: ModelConfig) -> int:
    """Float32 values read or written per token beside the matrices: the embedding's row, vectors, and the state twice."""
    model = _skeleton(config)
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, Linear | nn.Embedding)}
    vectors = sum(p.numel() for p in model.parameters() if id(p) not in matrices)
    state = sum(tensor.numel() for tensor in model.init_state(1).named().values())
    return config.n_embd + vectors + 2 * state


def dense_twin(config: ModelConfig) -> ModelConfig:
    """The same model without neurons: what every product multiplies out."""
    return dataclasses.replace(config, spikes="none", event=None, spike_embedding=False)


def _skeleton(config: ModelConfig) -> SpikeGPT:
    """The model's modules without their numbers."""
    with torch.device("meta"):
        return SpikeGPT(config)


def _work(module: nn.Module, config: ModelConfig) -> Iterator[tuple[str, Operations]]:
    channels = config.n_embd
    match module:
        case nn.LayerNorm():
            yield "norm", norm(channels)
        case TimeMix():
            yield "token shift", SHIFT * ((1 if module.is_shared else 3) * channels)
            yield "wkv", WKV * channels
            yield "gate", (SIGMOID + GATE) * channels
        case ChannelMix():
            yield "token shift", SHIFT * (2 * channels)
            yield "squared relu", SQUARED_RELU * config.hidden
            yield "gate", (SIGMOID + GATE) * channels
        case Block():
            yield "residual", RESIDUAL * (2 * channels)
        case SpikeEmbedding():
            yield "neuron", SPIKE * channels
        case LIF():
            yield "neuron", LIF_STEP * channels
        case EventNeuron():
            yield "neuron", _event(module) * module.width
            yield "rescale", RESCALE * module.fan_out


def _event(neuron: EventNeuron) -> Operations:
    event = EVENT + JUMP if neuron.config.smallest > 1 else EVENT
    if not neuron.has_membrane:
        return event
    return event + LEAK + (HARD_RESET if neuron.config.reset == "hard" else SOFT_RESET)

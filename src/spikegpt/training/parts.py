"""A model cut into parts that can be made, read and trained one at a time: its blocks, and what reads the last residual.

B batch, T tokens, C channels, V vocabulary. A part is a module from a residual [B, T, C] to the next one, or to logits
[B, T, V], each sequence from an empty state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..model.allocation import aim
from ..model.layers import Linear
from ..model.neurons import EventNeuron
from ..model.sites import sites
from ..model.spikegpt import Block


class Tensors(Protocol):
    """A tensor in a file that is read when it is needed, as `convert.stored.Stored`."""

    def read(self) -> Tensor: ...


class LoneBlock(Block):
    """A block from its own empty state."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x, self.init_state(x.shape[0], x))[0]


class LoneHead(nn.Module):
    """The last norm and the head, with the neuron between them if there is one."""

    def __init__(self, config: ModelConfig, backend: str) -> None:
        super().__init__()
        self.ln_out = nn.LayerNorm(config.n_embd)
        self.head_neuron = None
        if config.event:
            self.head_neuron = EventNeuron(config.n_embd, config.outputs, config.event, signed=True, backend=backend)
        self.head = Linear(config.n_embd, config.outputs, backend)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln_out(x)
        if self.head_neuron is None:
            return self.head(x)
        return self.head(self.head_neuron(x)[0], self.head_neuron.unit)


def part_names(config: ModelConfig) -> list[str]:
    """The parts of a model of this shape, in the order they run: `blocks.0`, `blocks.1`, ..., `head`."""
    return [*(f"blocks.{index}" for index in range(config.n_layer)), "head"]


def make_part(config: ModelConfig, name: str, stored: Mapping[str, Tensors], backend: str = "auto") -> nn.Module:
    """The part of that name with its weights in float32; neurons that have no threshold among `stored` keep the default."""
    prefix = prefix_of(name)
    part = LoneHead(config, backend) if name == "head" else LoneBlock(config, int(name.split(".")[1]), backend)
    if config.event:
        aim(config, {prefix + inside: neuron for inside, neuron in event_neurons(part).items()})
    tensors = {inside: prefix + inside for inside in part.state_dict()}
    there = {inside: stored[whole].read().float() for inside, whole in tensors.items() if whole in stored}
    part.load_state_dict(there, strict=False)
    return part


def prefix_of(name: str) -> str:
    """What the names of a part's tensors begin with in the whole model."""
    return "" if name == "head" else f"{name}."


def event_neurons(part: nn.Module) -> dict[str, EventNeuron]:
    """The neurons in front of its matrices, by their modules' names."""
    return {name: module for name, module in part.named_modules() if isinstance(module, EventNeuron)}


def neurons_by_matrix(config: ModelConfig, name: str, part: nn.Module) -> dict[str, EventNeuron]:
    """The same by the names of the matrices, both as they are called inside the part."""
    prefix, neurons = prefix_of(name), event_neurons(part)
    of = {site.neuron: site.name for site in sites(config)}
    return {of[prefix + inside].removeprefix(prefix): neuron for inside, neuron in neurons.items()}


def weights_of(config: ModelConfig, name: str) -> int:
    """Weights of the part's matrices."""
    block = None if name == "head" else int(name.split(".")[1])
    return sum(site.weights for site in sites(config) if site.block == block)


@torch.no_grad()
def embed(config: ModelConfig, stored: Mapping[str, Tensors], ids: Tensor) -> Tensor:
    """What the first block reads, [B, T, C] float32, of ids [B, T]."""
    x = stored["emb.weight"].read()[ids].float()
    weight, bias = (stored[f"blocks.0.ln0.{which}"].read().float() for which in ("weight", "bias"))
    return nn.functional.layer_norm(x, (config.n_embd,), weight, bias)

"""The parts of a block: matrices, token shift, time mix and channel mix, with or without neurons in front of the matrices.

B batch, T tokens, C channels (`n_embd`). Names of parameters are those of the published checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..config import ModelConfig
from .neurons import EventNeuron
from .sites import sites
from .state import MixState


class Linear(nn.Linear):
    """A matrix without bias."""

    def __init__(self, inputs: int, outputs: int, backend: str) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.backend = backend

    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        """The product, times `scale` [1] if there is one."""
        return ops.linear(input, self.weight, scale, backend=self.backend)

    def reset_parameters(self) -> None:
        """Nothing: the model fills every parameter once."""


class Dropout(nn.Module):
    """Sets a share `p` of its input to 0 while training."""

    def __init__(self, p: float, backend: str) -> None:
        super().__init__()
        self.p, self.backend = p, backend

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, backend=self.backend) if self.training and self.p > 0 else x


class Mix(nn.Module):
    """What time mix and channel mix share: matrices, and in an event-driven model a neuron in front of each."""

    def add_matrices(self, config: ModelConfig, name: str, backend: str) -> None:
        """Make the matrices that `sites` lists below `name`, and the neurons in front of them."""
        mine = [site for site in sites(config) if site.mix == name]
        for site in mine:
            setattr(self, site.matrix, Linear(site.inputs, site.outputs, backend))
        self.neurons = nn.ModuleDict()
        if config.event is None:
            return
        for site in mine:
            self.neurons[site.matrix] = EventNeuron(
                site.inputs, site.outputs, config.event, signed=site.signed, backend=backend
            )

    def project(self, name: str, x: Tensor, old: dict[str, Tensor], new: dict[str, Tensor]) -> Tensor:
        """The product of x [B, T, n] with the matrix `name`, read through its neuron if it has one."""
        matrix: Linear = getattr(self, name)
        if name not in self.neurons:
            return matrix(x)
        neuron = self.neurons[name]
        assert isinstance(neuron, EventNeuron)
        events, membrane = neuron(x, old.get(name))
        if membrane is not None:
            new[name] = membrane
        return matrix(events, neuron.unit)

    def input_dtype(self, x: Tensor) -> torch.dtype:
        """The type to make a matrix's input in: what the product reads, or x's own for a neuron in between."""
        return x.dtype if self.neurons else ops.matrix_dtype(x)

    def init_membranes(self, batch_size: int, like: Tensor) -> dict[str, Tensor]:
        """Membranes at rest."""
        return {
            site: like.new_zeros(batch_size, neuron.width)
            for site, neuron in self.neurons.items()
            if isinstance(neuron, EventNeuron) and neuron.has_membrane
        }


class TimeMix(Mix):
    """Attention's stand-in: receptance x WKV average of the past, in linear time (RWKV-4).

    Where `event.shared`, `input` is there instead of key, value and receptance, and `time_mix_k` is the only token shift.
    """

    input: Linear
    key: Linear
    value: Linear
    receptance: Linear
    output: Linear

    def __init__(self, config: ModelConfig, name: str, backend: str) -> None:
        super().__init__()
        channels = config.n_embd
        self.backend = backend
        self.time_decay = nn.Parameter(torch.empty(channels))
        self.time_first = nn.Parameter(torch.empty(channels))
        self.time_mix_k = nn.Parameter(torch.empty(1, 1, channels))
        self.is_shared = config.event is not None and config.event.shared
        if not self.is_shared:
            self.time_mix_v = nn.Parameter(torch.empty(1, 1, channels))
            self.time_mix_r = nn.Parameter(torch.empty(1, 1, channels))
        self.add_matrices(config, name, backend)

    def forward(self, x: Tensor, state: MixState) -> tuple[Tensor, MixState]:
        old, new = state.membranes, {}
        how: Any = {"dtype": self.input_dtype(x), "backend": self.backend}
        if self.is_shared:
            (mixed,) = ops.shift_mix(x, state.shift, (self.time_mix_k,), **how)
            k, v, r = self.project("input", mixed, old, new).chunk(3, dim=-1)
        else:
            mixes = self.time_mix_k, self.time_mix_v, self.time_mix_r
            k, v, r = ops.shift_mix(x, state.shift, mixes, **how)
            k, v = self.project("key", k, old, new), self.project("value", v, old, new)
            r = self.project("receptance", r, old, new)
        decay = -torch.exp(self.time_decay.float())
        y, wkv = ops.gated_wkv(decay, self.time_first, k, v, r, state.wkv, **how)
        y = self.project("output", y, old, new)
        return y, MixState(x[:, -1], wkv, new)


class ChannelMix(Mix):
    """The feed-forward part: a gate x a matrix of relu(key)^2, with a token shift."""

    key: Linear
    receptance: Linear
    value: Linear

    def __init__(self, config: ModelConfig, name: str, backend: str) -> None:
        super().__init__()
        channels = config.n_embd
        self.backend = backend
        self.time_mix_k = nn.Parameter(torch.empty(1, 1, channels))
        self.time_mix_r = nn.Parameter(torch.empty(1, 1, channels))
        self.add_matrices(config, name, backend)

    def forward(self, x: Tensor, state: MixState) -> tuple[Tensor, MixState]:
        old, new = state.membranes, {}
        how: Any = {"dtype": self.input_dtype(x), "backend": self.backend}
        k, r = ops.shift_mix(x, state.shift, (self.time_mix_k, self.time_mix_r), **how)
        k, r = self.project("key", k, old, new), self.project("receptance", r, old, new)
        v = self.project("value", ops.relu_squared(k, backend=self.backend), old, new)
        return ops.gate(r, v, backend=self.backend), MixState(x[:, -1], None, new)

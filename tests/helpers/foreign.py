"""Random weights under the published names, lively enough that neurons fire and every part matters."""

from __future__ import annotations

import torch
from torch import Tensor

from spikegpt.config import ModelConfig
from spikegpt.convert.names import shapes


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {name: _fill(name, shape, random) for name, shape in shapes(config).items()}


def _fill(name: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=random)
    if name.endswith("time_decay"):
        return torch.empty(shape).uniform_(-5, 3, generator=random)
    if ".time_mix" in name:
        return torch.empty(shape).uniform_(0, 1, generator=random)
    if ".ln" in name or name.startswith("ln_out"):
        return noise * 0.2 + name.endswith("weight")
    if len(shape) == 2:
        return noise * 1.5 / shape[1] ** 0.5
    return noise * 0.5

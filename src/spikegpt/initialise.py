"""The published initialisation (RWKV-4's, which SpikeGPT keeps)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .model import SpikeGPT

# Residual branches start silent: these matrices begin at zero.
_ZERO = ("att.key", "att.receptance", "att.output", "ffn.value", "ffn.receptance", "ffnPre.value", "ffnPre.receptance")


@torch.no_grad()
def initialise(model: SpikeGPT) -> None:
    """Fill every parameter of the model in place, from torch's random state; on the meta device there is nothing to fill."""
    if model.emb.weight.is_meta:
        return
    config = model.config
    _orthogonal(model.emb.weight, 1e-4, gain=math.sqrt(max(config.vocab_size, config.n_embd)))
    _orthogonal(model.head.weight, 0.5)
    for name, module in model.blocks.named_modules():
        if isinstance(module, nn.Linear):
            if name.endswith(_ZERO):
                module.weight.zero_()
            else:
                _orthogonal(module.weight, 1.0)
    for layer, block in enumerate(model.blocks):
        for name, values in _time_constants(layer, config.n_layer, config.n_embd).items():
            parameter = dict(block.named_parameters()).get(name)
            if parameter is not None:
                parameter.copy_(values.view_as(parameter))


def _orthogonal(weight: Tensor, scale: float, gain: float | None = None) -> None:
    rows, columns = weight.shape
    if gain is None:
        gain = math.sqrt(rows / columns) if rows > columns else 1.0
    nn.init.orthogonal_(weight, gain * scale)


def _time_constants(layer: int, layers: int, channels: int) -> dict[str, Tensor]:
    depth = layer / max(layers - 1, 1)
    to_last = 1 - layer / layers
    c = torch.arange(channels, dtype=torch.float32)
    share = c / channels
    mix = share**to_last
    return {
        "att.time_decay": -5 + 8 * (c / max(channels - 1, 1)) ** (0.7 + 1.3 * depth),
        "att.time_first": math.log(0.3) + 0.5 * ((c + 1) % 3 - 1),
        "att.time_mix_k": mix,
        "att.time_mix_v": mix + 0.3 * depth,
        "att.time_mix_r": share ** (0.5 * to_last),
        "ffn.time_mix_k": mix,
        "ffn.time_mix_r": mix,
        "ffnPre.time_mix_k": mix,
        "ffnPre.time_mix_r": mix,
    }

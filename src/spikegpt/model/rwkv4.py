"""RWKV-4's initial time constants, which SpikeGPT keeps (arXiv 2305.13048, appendix; released code)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def time_constants(layer: int, layers: int, channels: int) -> dict[str, Tensor]:
    """Initial values, each [channels] float32, of the decays and token-shift mixes of block `layer` of `layers`, by name."""
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

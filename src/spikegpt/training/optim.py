"""Parameter groups, the optimiser and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..config import TrainConfig


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimiser: matrices, which decay, and the rest, which does not.

    Norms, time constants, token-shift mixes and leaks are vectors (whatever their shape), and a row of the
    embedding is one too: decaying them would pull them to a value that means something.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in trained if parameter.ndim == 2 and name != "emb.weight"]
    vectors = [parameter for name, parameter in trained if parameter.ndim != 2 or name == "emb.weight"]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or Adam over the parameters of `model`, fused into one kernel where their device has it."""
    devices = {parameter.device.type for parameter in model.parameters()}
    settings: dict[str, Any] = {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "fused": devices <= {"cpu", "cuda"},
    }
    if config.optimizer == "adam":
        return torch.optim.Adam(param_groups(model, 0.0), **settings)
    return torch.optim.AdamW(param_groups(model, config.weight_decay), **settings)


def lr_at(step: int, config: TrainConfig) -> float:
    """Learning rate of optimiser step `step`, counted from 0.

    Linear warm-up to `lr`, then a cosine down to `lr_min` at the last step; or, with "wsd", `lr` until the last
    `decay` fraction of the steps, which falls linearly to `lr_min` (warm-up / stable / decay, arXiv 2404.06395).
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    falling_from = config.warmup
    if config.schedule == "wsd":
        falling_from = max(config.warmup, round(config.steps * (1 - config.decay)))
    if step < falling_from:
        return config.lr
    done = min((step - falling_from) / max(config.steps - 1 - falling_from, 1), 1.0)
    left = 1 - done if config.schedule == "wsd" else 0.5 * (1 + math.cos(math.pi * done))
    return config.lr_min + (config.lr - config.lr_min) * left

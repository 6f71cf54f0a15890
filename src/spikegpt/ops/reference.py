"""The operators as plain PyTorch loops over time: the specification, in any floating type.

Shapes: B batch, T time in tokens, C channels. Gradients come from autograd; only the jumps have their own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class _Spike(torch.autograd.Function):
    """H(z) = 1 where z >= 0, with the ATan surrogate dH/dz = (alpha/2) / (1 + (pi/2 alpha z)^2)."""

    @staticmethod
    def forward(z: Tensor, alpha: float) -> Tensor:
        return (z >= 0).to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        z, ctx.alpha = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return grads[0] * (ctx.alpha / 2) / (1 + (math.pi / 2 * ctx.alpha * z) ** 2), None


class _Event(torch.autograd.Function):
    """The overshoot of |h| (or h) above a threshold, in units, rounded up: straight-through over the rounding only."""

    @staticmethod
    def forward(h: Tensor, threshold: Tensor, unit: Tensor, levels: int, signed: bool, window: float) -> Tensor:
        size = h.abs() if signed else h
        count = ((size - threshold).clamp(min=0) / unit).ceil().clamp(max=levels)
        return count * h.sign() if signed else count

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, bool, float], output: Tensor) -> None:
        h, threshold, unit, ctx.levels, ctx.signed, ctx.window = inputs
        ctx.save_for_backward(h, threshold, unit)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, threshold, unit = ctx.saved_tensors
        size = h.abs() if ctx.signed else h
        margin = threshold * ctx.window
        passes = (size > threshold - margin) & (size <= threshold + unit * ctx.levels + margin)
        return torch.where(passes, grads[0] / unit, 0), None, None, None, None, None


def spike(z: Tensor, alpha: float) -> Tensor:
    """See `ops.spike`."""
    return _Spike.apply(z, alpha)


def wkv(decay: Tensor, first: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """See `ops.wkv`; `state` is given."""
    numerator, denominator, exponent = state.unbind(1)
    outputs = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        top = torch.maximum(exponent, first + k_t)
        past, now = torch.exp(exponent - top), torch.exp(first + k_t - top)
        outputs.append((past * numerator + now * v_t) / (past * denominator + now))
        top = torch.maximum(exponent + decay, k_t)
        past, now = torch.exp(exponent + decay - top), torch.exp(k_t - top)
        numerator, denominator, exponent = past * numerator + now * v_t, past * denominator + now, top
    y = torch.stack(outputs, 1) if outputs else v.clone()
    return y, torch.stack((numerator, denominator, exponent), 1)


def lif(x: Tensor, membrane: Tensor, tau: float, threshold: float, alpha: float) -> tuple[Tensor, Tensor]:
    """See `ops.lif`; `membrane` is given."""
    outputs = []
    for x_t in x.unbind(1):
        charged = membrane + (x_t - membrane) / tau
        spikes = spike(charged - threshold, alpha)
        membrane = (1 - spikes) * charged
        outputs.append(spikes)
    return torch.stack(outputs, 1) if outputs else x.clone(), membrane.clone()


def event(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    leak: Tensor | None,
    membrane: Tensor,
    levels: int,
    signed: bool,
    hard: bool,
    window: float,
) -> tuple[Tensor, Tensor]:
    """See `ops.event`; `membrane` is given."""
    if leak is None:
        return _Event.apply(x, threshold, unit, levels, signed, window), membrane
    outputs = []
    for x_t in x.unbind(1):
        charged = leak * membrane + x_t
        events = _Event.apply(charged, threshold, unit, levels, signed, window)
        membrane = torch.where(events == 0, charged, 0) if hard else charged - events * unit
        outputs.append(events)
    return torch.stack(outputs, 1) if outputs else x.clone(), membrane.clone()

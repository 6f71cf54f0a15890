"""The operators as plain PyTorch, with loops over time where needed: the specification, in any floating type.

Shapes: B batch, T time in tokens, C channels. Gradients come from autograd; only the jumps have their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .checks import IGNORED, check_targets, counted, promoted

_ELEMENTS = {"cpu": 2**18}
"""Log-probabilities held at a time: as many as a core's cache holds, or 2**26 elsewhere."""


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
    def forward(
        h: Tensor, threshold: Tensor, unit: Tensor, levels: int, smallest: int, signed: bool, window: float
    ) -> Tensor:
        size = h.abs() if signed else h
        count = ((size - threshold).clamp(min=0) / unit).ceil().clamp(max=levels)
        count = torch.where(count < smallest, 0, count)
        return count * h.sign() if signed else count

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, int, bool, float], output: Tensor) -> None:
        h, threshold, unit, ctx.levels, ctx.smallest, ctx.signed, ctx.window = inputs
        ctx.save_for_backward(h, threshold, unit)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, threshold, unit = ctx.saved_tensors
        size = h.abs() if ctx.signed else h
        margin = threshold * ctx.window
        onset = threshold + (ctx.smallest - 1) * unit
        passes = (size > onset - margin) & (size <= threshold + unit * ctx.levels + margin)
        return torch.where(passes, grads[0] / unit, 0), None, None, None, None, None, None


class _EventLinear(torch.autograd.Function):
    """Differentiated by hand to save memory: a byte of each event is kept, and no scaled copy of the weights.

    Half types keep half as much as it is, and are not worth the conversion.
    """

    @staticmethod
    def forward(events: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return _scaled_linear(events, weight, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        events, weight, scale = inputs
        ctx.save_for_backward(events.to(torch.int8), weight, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        events, weight, scale = ctx.saved_tensors
        grad = grads[0].reshape(-1, weight.shape[0])
        rows = events.view(-1, weight.shape[1]).to(grad.dtype)
        grad_events = _scaled_linear(grad, weight.t(), scale).view(events.shape)
        return grad_events, _scaled_linear(grad.t(), rows.t(), scale), None


def _scaled_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [..., N] times weight [M, N] transposed times scale [1], which multiplies whichever is smaller, weight or product."""
    if x.numel() > weight.shape[1] ** 2:
        return F.linear(x, (weight * scale).to(weight.dtype))
    return F.linear(x, weight) * scale


class _Divergence(torch.autograd.Function):
    """Computed a few rows at a time to save memory: only the gradient, as large as the logits, is kept."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher: Tensor) -> Tensor:
        rows, classes = logits.shape
        grad = torch.empty_like(logits)
        wide = torch.promote_types(logits.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=logits.device)
        at_once = max(1, _ELEMENTS.get(logits.device.type, 2**26) // classes)
        for ours, theirs, out in zip(*(each.split(at_once) for each in (logits, teacher, grad)), strict=True):
            log_q, log_p = F.log_softmax(ours.to(wide), -1), F.log_softmax(theirs.to(wide), -1)
            p = log_p.exp()
            total += torch.dot(p.flatten(), log_p.sub_(log_q).flatten())
            out.copy_(log_q.exp_().sub_(p).div_(rows))
        ctx.save_for_backward(grad)
        return total / rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.saved_tensors[0] * grads[0], None


class _CrossEntropy(torch.autograd.Function):
    """Differentiated by hand to save memory: one [..., V] tensor for the gradient, and no log-probabilities are kept."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, penalty: float) -> Tensor:
        largest, where = logits.max(-1)
        log_total = (logits - largest.unsqueeze(-1)).exp_().sum(-1).log_().add_(largest)
        ignored = targets == IGNORED
        classes = targets.masked_fill(ignored, 0).unsqueeze(-1)
        ctx.save_for_backward(logits, classes, ignored, log_total, largest, where)
        ctx.penalty = penalty
        losses = log_total - logits.gather(-1, classes).squeeze(-1)
        return losses.masked_fill(ignored, 0).sum() / counted(targets)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, classes, ignored, log_total, largest, where = ctx.saved_tensors
        scale = grads[0] / (~ignored).sum()
        grad = (logits - log_total.unsqueeze(-1)).exp_().mul_(scale)
        grad.scatter_add_(-1, classes, -scale.expand(classes.shape))
        grad.scatter_add_(-1, where.unsqueeze(-1), (largest * ctx.penalty * scale).unsqueeze(-1))
        return grad.masked_fill_(ignored.unsqueeze(-1), 0), None, None


def event_linear(events: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """See `ops.linear`."""
    if torch.is_grad_enabled() and events.dtype == weight.dtype == torch.float32:
        return _EventLinear.apply(events, weight, scale)
    return _scaled_linear(events, weight, scale)


def spike(z: Tensor, alpha: float) -> Tensor:
    """See `ops.spike`."""
    return _Spike.apply(z, alpha)


def wkv(decay: Tensor, first: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """See `ops.wkv`; `state` is given."""
    decay, first, k, v, state = promoted(decay, first, k, v, state)
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


def gated_wkv(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, state: Tensor, gate: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See `ops.gated_wkv`; `state` is given."""
    decay, first, k, v, state, gate = promoted(decay, first, k, v, state, gate)
    y, state = wkv(decay, first, k, v, state)
    return (torch.sigmoid(gate) * y).to(dtype), state


def lif(x: Tensor, membrane: Tensor, tau: float, threshold: float, alpha: float) -> tuple[Tensor, Tensor]:
    """See `ops.lif`; `membrane` is given."""
    x, membrane = promoted(x, membrane)
    outputs = []
    for x_t in x.unbind(1):
        charged = membrane + (x_t - membrane) / tau
        spikes = spike(charged - threshold, alpha)
        membrane = (1 - spikes) * charged
        outputs.append(spikes)
    return torch.stack(outputs, 1) if outputs else x.clone(), membrane.clone()


def lif_add(
    x: Tensor, residual: Tensor, membrane: Tensor, tau: float, threshold: float, alpha: float
) -> tuple[Tensor, Tensor]:
    """See `ops.lif_add`; `membrane` is given."""
    spikes, membrane = lif(x, membrane, tau, threshold, alpha)
    return residual + spikes.to(residual.dtype), membrane


def event(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    leak: Tensor | None,
    membrane: Tensor,
    levels: int,
    smallest: int,
    signed: bool,
    hard: bool,
    window: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """See `ops.event`; `membrane` is given."""
    if leak is None:
        x, threshold, unit = promoted(x, threshold, unit)
        return _Event.apply(x, threshold, unit, levels, smallest, signed, window).to(dtype), membrane
    x, threshold, unit, leak, membrane = promoted(x, threshold, unit, leak, membrane)
    outputs = []
    for x_t in x.unbind(1):
        charged = leak * membrane + x_t
        events = _Event.apply(charged, threshold, unit, levels, smallest, signed, window)
        membrane = torch.where(events == 0, charged, 0) if hard else charged - events * unit
        outputs.append(events)
    return (torch.stack(outputs, 1) if outputs else x.clone()).to(dtype), membrane.clone()


def tally(events: Tensor, levels: int) -> Tensor:
    """See `ops.tally`."""
    return torch.stack([torch.count_nonzero(events), (events.detach().abs() >= levels).sum()])


def shift_mix(x: Tensor, last: Tensor, mixes: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """See `ops.shift_mix`."""
    x, last, *mixes = promoted(x, last, *mixes)
    before = torch.cat([last.unsqueeze(1), x[:, :-1]], dim=1)
    return tuple(torch.lerp(before, x, mix).to(dtype) for mix in mixes)


def relu_squared(x: Tensor, dtype: torch.dtype) -> Tensor:
    """See `ops.relu_squared`."""
    (x,) = promoted(x)
    return torch.square(torch.relu(x)).to(dtype)


def gate(opening: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """See `ops.gate`."""
    opening, x = promoted(opening, x)
    return (torch.sigmoid(opening) * x).to(dtype)


def dropout(x: Tensor, p: float) -> Tensor:
    """See `ops.dropout`."""
    return F.dropout(x, p)


def cross_entropy(logits: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """See `ops.cross_entropy`."""
    (logits,) = promoted(logits)
    if not torch.compiler.is_compiling():  # then gather itself refuses what is out of range
        check_targets(targets, logits.shape[-1])
    return _CrossEntropy.apply(logits, targets, penalty)


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """See `ops.divergence`."""
    return _Divergence.apply(logits.flatten(0, -2), teacher.flatten(0, -2))

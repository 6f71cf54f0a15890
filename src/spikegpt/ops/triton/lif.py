"""Leaky integrate-and-fire, with or without the residual its spikes are added to: see `ops.lif`, `ops.lif_add`.

Rounds as the reference does: a spike decision is the same in both, in float32 whatever the input's type.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import BLOCK, CHUNK, given, is_direct, launch, load_tokens, part, register, saved_states, scan_grid


@part
def _over_tau(x, tau, EXACT: tl.constexpr):
    """x / tau rounded once; a multiplication where tau is a power of two."""
    return x * (1.0 / tau) if EXACT else tl.div_rn(x, tau + tl.zeros_like(x))


@triton.jit
def _forward_kernel(
    x_p, residual_p, membrane_p, y_p, membrane_out_p, saved_p, tau, threshold, time, channels: tl.constexpr,
    ADDED: tl.constexpr, SAVE: tl.constexpr, EXACT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    batch = tl.program_id(1).to(tl.int64)
    mask = c < channels
    at = batch * time * channels + c
    x_p, residual_p, y_p = x_p + at, residual_p + at, y_p + at
    blocks = time // CHUNK
    saved_p += batch * (blocks + time % CHUNK) * channels + c

    membrane = tl.load(membrane_p + batch * channels + c, mask=mask, other=0.0)
    ahead = c < tl.minimum(blocks, 1) * channels
    next_x = load_tokens(x_p, channels, ahead, CHUNK)
    next_residual = load_tokens(residual_p, channels, ahead, CHUNK if ADDED else 0)
    for block in range(blocks):
        xs, residuals = next_x, next_residual
        if SAVE:
            tl.store(saved_p, membrane, mask=mask)
            saved_p += channels
        x_p, residual_p = x_p + CHUNK * channels, residual_p + CHUNK * channels
        ahead = c < tl.minimum(blocks - 1 - block, 1) * channels
        next_x = load_tokens(x_p, channels, ahead, CHUNK)
        next_residual = load_tokens(residual_p, channels, ahead, CHUNK if ADDED else 0)
        for i in tl.static_range(CHUNK):
            charged = membrane + _over_tau(xs[i] - membrane, tau, EXACT)
            fires = charged >= threshold
            y = tl.where(fires, 1.0, 0.0)
            if ADDED:
                y += residuals[i]
            tl.store(y_p + i * channels, y.to(y_p.dtype.element_ty), mask=mask)
            membrane = tl.where(fires, 0.0, charged)
        y_p += CHUNK * channels
    for _ in range(blocks * CHUNK, time):
        if SAVE:
            tl.store(saved_p, membrane, mask=mask)
            saved_p += channels
        x = tl.load(x_p, mask=mask, other=0.0).to(tl.float32)
        charged = membrane + _over_tau(x - membrane, tau, EXACT)
        fires = charged >= threshold
        y = tl.where(fires, 1.0, 0.0)
        if ADDED:
            y += tl.load(residual_p, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_p, y.to(y_p.dtype.element_ty), mask=mask)
        membrane = tl.where(fires, 0.0, charged)
        x_p, residual_p, y_p = x_p + channels, residual_p + channels, y_p + channels
    tl.store(membrane_out_p + batch * channels + c, membrane, mask=mask)


@part
def _step_back(charged, grad_spikes, grad, tau, threshold, alpha, EXACT: tl.constexpr):
    """Gradients of x and of the membrane before a token, from that of the membrane after it."""
    z = 1.5707963267948966 * alpha * (charged - threshold)
    surrogate = alpha / 2 / (1.0 + z * z)
    kept = tl.where(charged >= threshold, 0.0, grad)
    grad_charged = kept + (grad_spikes - grad * charged) * surrogate
    grad_x = _over_tau(grad_charged, tau, EXACT)
    return grad_x, grad_charged - grad_x


@triton.jit
def _backward_kernel(
    x_p, saved_p, grad_y_p, grad_out_p, grad_x_p, grad_membrane_p, tau, threshold, alpha, time, channels: tl.constexpr,
    EXACT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    batch = tl.program_id(1).to(tl.int64)
    mask = c < channels
    blocks = time // CHUNK
    end = (batch + 1) * time * channels + c  # one past the last token; pointers go back from there
    x_p, grad_y_p, grad_x_p = x_p + end, grad_y_p + end, grad_x_p + end
    saved_p += (batch + 1) * (blocks + time % CHUNK) * channels + c

    grad = tl.load(grad_out_p + batch * channels + c, mask=mask, other=0.0)
    for _ in range(blocks * CHUNK, time):
        saved_p, x_p, grad_y_p, grad_x_p = saved_p - channels, x_p - channels, grad_y_p - channels, grad_x_p - channels
        membrane = tl.load(saved_p, mask=mask, other=0.0)
        x = tl.load(x_p, mask=mask, other=0.0).to(tl.float32)
        charged = membrane + _over_tau(x - membrane, tau, EXACT)
        grad_spikes = tl.load(grad_y_p, mask=mask, other=0.0).to(tl.float32)
        grad_x, grad = _step_back(charged, grad_spikes, grad, tau, threshold, alpha, EXACT)
        tl.store(grad_x_p, grad_x.to(grad_x_p.dtype.element_ty), mask=mask)

    back = CHUNK * channels
    ahead = c < tl.minimum(blocks, 1) * channels
    next_membrane = tl.load(saved_p - channels, mask=ahead, other=0.0)
    next_x, next_grad = (
        load_tokens(x_p - back, channels, ahead, CHUNK),
        load_tokens(grad_y_p - back, channels, ahead, CHUNK),
    )
    for block in range(blocks):
        membrane, xs, grads = next_membrane, next_x, next_grad
        saved_p, x_p, grad_y_p, grad_x_p = saved_p - channels, x_p - back, grad_y_p - back, grad_x_p - back
        ahead = c < tl.minimum(blocks - 1 - block, 1) * channels
        next_membrane = tl.load(saved_p - channels, mask=ahead, other=0.0)
        next_x = load_tokens(x_p - back, channels, ahead, CHUNK)
        next_grad = load_tokens(grad_y_p - back, channels, ahead, CHUNK)
        charges = ()
        for i in tl.static_range(CHUNK):
            charged = membrane + _over_tau(xs[i] - membrane, tau, EXACT)
            charges = charges + (charged,)
            membrane = tl.where(charged >= threshold, 0.0, charged)
        for i in tl.static_range(CHUNK - 1, -1, -1):
            grad_x, grad = _step_back(charges[i], grads[i], grad, tau, threshold, alpha, EXACT)
            tl.store(grad_x_p + i * channels, grad_x.to(grad_x_p.dtype.element_ty), mask=mask)
    tl.store(grad_membrane_p + batch * channels + c, grad, mask=mask)


def _is_exact(tau: float) -> bool:
    return math.frexp(tau)[0] == 0.5


def _empty(
    x: Tensor, residual: Tensor | None, membrane: Tensor, tau: float, threshold: float, alpha: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape, dtype=torch.float32 if residual is None else residual.dtype)
    return y, membrane.new_empty(membrane.shape), saved_states(x, save=save)


def _run(
    x: Tensor, residual: Tensor | None, membrane: Tensor, tau: float, threshold: float, alpha: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x, membrane = x.contiguous(), membrane.contiguous()
    residual = residual.contiguous() if residual is not None else None
    y, membrane_out, saved = _empty(x, residual, membrane, tau, threshold, alpha, save)
    launch(
        _forward_kernel, scan_grid(x), x,
        x, x if residual is None else residual, membrane, y, membrane_out, saved, tau, threshold, x.shape[1], x.shape[2],
        ADDED=residual is not None, SAVE=save, EXACT=_is_exact(tau), CHUNK=CHUNK, BLOCK=BLOCK,
        num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return y, membrane_out, saved


def _backward_empty(
    x: Tensor, saved: Tensor, grad_y: Tensor, grad_out: Tensor, tau: float, threshold: float, alpha: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), grad_out.new_empty(grad_out.shape)


def _backward(
    x: Tensor, saved: Tensor, grad_y: Tensor, grad_out: Tensor, tau: float, threshold: float, alpha: float
) -> tuple[Tensor, Tensor]:
    x, grad_y, grad_out = x.contiguous(), grad_y.contiguous(), grad_out.contiguous()
    grads = _backward_empty(x, saved, grad_y, grad_out, tau, threshold, alpha)
    launch(
        _backward_kernel, scan_grid(x), x,
        x, saved, grad_y, grad_out, *grads, tau, threshold, alpha, x.shape[1], x.shape[2],
        EXACT=_is_exact(tau), CHUNK=CHUNK, BLOCK=BLOCK, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return grads


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, _, *ctx.settings, _ = inputs
    ctx.added = residual is not None
    ctx.set_materialize_grads(False)  # the saved membranes need none
    ctx.save_for_backward(x, output[2], output[1])


def _gradients(ctx: Any, grad_y: Tensor | None, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    x, saved, membrane = ctx.saved_tensors
    grad_y, grad_out = given(grad_y, x), given(grad_out, membrane)
    grad_x, grad_membrane = _backward_op(x, saved, grad_y, grad_out, *ctx.settings)
    return grad_x, grad_y if ctx.added else None, grad_membrane, None, None, None, None


_op = register("lif", _run, _empty)
_backward_op = register("lif_backward", _backward, _backward_empty)
_op.register_autograd(_gradients, setup_context=_save)


def lif(
    x: Tensor, residual: Tensor | None, membrane: Tensor, tau: float, threshold: float, alpha: float
) -> tuple[Tensor, Tensor]:
    """See `ops.lif` and, with a residual [B, T, C], `ops.lif_add`."""
    direct = is_direct(x, residual, membrane)
    y, membrane, _ = (_run if direct else _op)(x, residual, membrane, tau, threshold, alpha, not direct)
    return y, membrane

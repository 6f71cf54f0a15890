"""Operators without a recurrence, in one pass over memory: see `ops.shift_mix`, `ops.relu_squared`."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import is_direct, launch, part, register
from .launch import sigmoid as _sigmoid

ROWS, WIDTH = 16, 128
"""Tokens and channels a program takes."""
FLAT = 1024
"""Values per program where the shape does not matter."""


@part
def _place(time, channels, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """A program's tokens [ROWS, 1], channels [1, WIDTH] and their offsets; the sequence, and its number of programs."""
    parts = tl.cdiv(time, ROWS)
    batch = (tl.program_id(0) // parts).to(tl.int64)
    t = (tl.program_id(0) % parts) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    return t, c, (batch * time + t) * channels + c, batch


@part
def _before(x_p, last_p, at, t, c, batch, time, channels):
    """Each token's predecessor: `last` for the first."""
    inside = (t < time) & (c < channels)
    earlier = tl.load(x_p + at - channels, mask=inside & (t > 0), other=0.0).to(tl.float32)
    last = tl.load(last_p + batch * channels + c + t * 0, mask=inside & (t == 0), other=0.0).to(tl.float32)
    return earlier + last


@part
def _mixed(x, before, mix):
    """lerp(before, x, mix), in the order that leaves x exact at mix = 1 and `before` at 0, as torch rounds it."""
    return tl.where(tl.abs(mix) < 0.5, before + mix * (x - before), x - (x - before) * (1.0 - mix))


@triton.jit
def _forward_kernel(
    x_p, last_p, mixes_p, y0_p, y1_p, y2_p, time, channels,
    COUNT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    t, c, at, batch = _place(time, channels, ROWS, WIDTH)
    mask = (t < time) & (c < channels)
    x = tl.load(x_p + at, mask=mask, other=0.0).to(tl.float32)
    before = _before(x_p, last_p, at, t, c, batch, time, channels)
    for i in tl.static_range(COUNT):
        y_p = y0_p if i == 0 else (y1_p if i == 1 else y2_p)
        mix = tl.load(mixes_p + i * channels + c, mask=c < channels, other=0.0)
        tl.store(y_p + at, _mixed(x, before, mix).to(y_p.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    x_p, last_p, mixes_p, grad0_p, grad1_p, grad2_p, grad_x_p, grad_last_p, grad_mixes_p, time, channels,
    COUNT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    t, c, at, batch = _place(time, channels, ROWS, WIDTH)
    mask = (t < time) & (c < channels)
    later = mask & (t + 1 < time)
    difference = tl.load(x_p + at, mask=mask, other=0.0).to(tl.float32)
    difference -= _before(x_p, last_p, at, t, c, batch, time, channels)
    grad_x = tl.zeros((ROWS, WIDTH), tl.float32)
    grad_before = tl.zeros((ROWS, WIDTH), tl.float32)
    for i in tl.static_range(COUNT):
        grad_p = grad0_p if i == 0 else (grad1_p if i == 1 else grad2_p)
        mix = tl.load(mixes_p + i * channels + c, mask=c < channels, other=0.0)
        grad = tl.load(grad_p + at, mask=mask, other=0.0).to(tl.float32)
        after = tl.load(grad_p + at + channels, mask=later, other=0.0).to(tl.float32)
        grad_x += mix * grad + (1.0 - mix) * after
        grad_before += (1.0 - mix) * grad
        one = tl.sum(grad * difference, 0)[None, :]
        where = (tl.program_id(0).to(tl.int64) * COUNT + i) * channels + c
        tl.store(grad_mixes_p + where, one, mask=c < channels)
    tl.store(grad_x_p + at, grad_x.to(grad_x_p.dtype.element_ty), mask=mask)
    tl.store(grad_last_p + batch * channels + c + t * 0, grad_before, mask=mask & (t == 0))


def _grid(x: Tensor) -> tuple[int, int]:
    batch, time, channels = x.shape
    return batch * triton.cdiv(time, ROWS), triton.cdiv(channels, WIDTH)


def _empty(x: Tensor, last: Tensor, mixes: Tensor, dtype: torch.dtype) -> list[Tensor]:
    return [x.new_empty(x.shape, dtype=dtype) for _ in range(mixes.shape[0])]


def _run(x: Tensor, last: Tensor, mixes: Tensor, dtype: torch.dtype) -> list[Tensor]:
    x, last, mixes = x.contiguous(), last.contiguous(), mixes.contiguous()
    outputs = _empty(x, last, mixes, dtype)
    launch(
        _forward_kernel, _grid(x), x, x, last, mixes, *(outputs * 3)[:3], x.shape[1], x.shape[2],
        COUNT=len(outputs), ROWS=ROWS, WIDTH=WIDTH, enable_fp_fusion=True,
    )  # fmt: skip
    return outputs


def _backward_empty(x: Tensor, last: Tensor, mixes: Tensor, grads: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), last.new_empty(last.shape), mixes.new_empty(mixes.shape)


def _backward(x: Tensor, last: Tensor, mixes: Tensor, grads: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    x, last, mixes, *grads = (t.contiguous() for t in (x, last, mixes, *grads))
    grad_x, grad_last = torch.empty_like(x), torch.zeros_like(last)
    sums = x.new_empty(_grid(x)[0], len(grads), x.shape[2], dtype=torch.float32)
    launch(
        _backward_kernel, _grid(x), x,
        x, last, mixes, *(grads * 3)[:3], grad_x, grad_last, sums, x.shape[1], x.shape[2],
        COUNT=len(grads), ROWS=ROWS, WIDTH=WIDTH, enable_fp_fusion=True,
    )  # fmt: skip
    return grad_x, grad_last, sums.sum(0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3])


def _gradients(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    return *_backward_op(*ctx.saved_tensors, grads), None


_op = register("shift_mix", _run, _empty)
_backward_op = register("shift_mix_backward", _backward, _backward_empty)
_op.register_autograd(_gradients, setup_context=_save)


def shift_mix(x: Tensor, last: Tensor, mixes: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """See `ops.shift_mix`; mixes [n, C] in float32, at most 3."""
    return tuple((_run if is_direct(x, last, mixes) else _op)(x, last, mixes, dtype))


@triton.jit
def _squared_kernel(x_p, y_p, total, FLAT: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * FLAT + tl.arange(0, FLAT)
    x = tl.load(x_p + at, mask=at < total, other=0.0).to(tl.float32)
    x = tl.where(x < 0.0, 0.0, x)  # NaN stays NaN
    tl.store(y_p + at, (x * x).to(y_p.dtype.element_ty), mask=at < total)


@triton.jit
def _squared_backward_kernel(x_p, grad_p, grad_x_p, total, FLAT: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * FLAT + tl.arange(0, FLAT)
    x = tl.load(x_p + at, mask=at < total, other=0.0).to(tl.float32)
    grad = tl.load(grad_p + at, mask=at < total, other=0.0).to(tl.float32)
    tl.store(grad_x_p + at, (2.0 * tl.where(x < 0.0, 0.0, x) * grad).to(grad_x_p.dtype.element_ty), mask=at < total)


def _squared_empty(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


def _squared_run(x: Tensor, dtype: torch.dtype) -> Tensor:
    x = x.contiguous()
    y = _squared_empty(x, dtype)
    launch(_squared_kernel, (triton.cdiv(x.numel(), FLAT),), x, x, y, x.numel(), FLAT=FLAT, enable_fp_fusion=True)
    return y


def _squared_backward_empty(x: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(x)


def _squared_backward(x: Tensor, grad: Tensor) -> Tensor:
    x, grad = x.contiguous(), grad.contiguous()
    grad_x = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), FLAT),)
    launch(_squared_backward_kernel, grid, x, x, grad, grad_x, x.numel(), FLAT=FLAT, enable_fp_fusion=True)
    return grad_x


def _squared_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _squared_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _squared_backward_op(*ctx.saved_tensors, grad), None


_squared_op = register("relu_squared", _squared_run, _squared_empty)
_squared_backward_op = register("relu_squared_backward", _squared_backward, _squared_backward_empty)
_squared_op.register_autograd(_squared_gradients, setup_context=_squared_save)


def relu_squared(x: Tensor, dtype: torch.dtype) -> Tensor:
    """See `ops.relu_squared`."""
    return (_squared_run if is_direct(x) else _squared_op)(x, dtype)


@triton.jit
def _gate_kernel(opening_p, x_p, y_p, total, FLAT: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * FLAT + tl.arange(0, FLAT)
    opening = tl.load(opening_p + at, mask=at < total, other=0.0).to(tl.float32)
    x = tl.load(x_p + at, mask=at < total, other=0.0).to(tl.float32)
    tl.store(y_p + at, (x * _sigmoid(opening)).to(y_p.dtype.element_ty), mask=at < total)


@triton.jit
def _gate_backward_kernel(opening_p, x_p, grad_p, grad_opening_p, grad_x_p, total, FLAT: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * FLAT + tl.arange(0, FLAT)
    mask = at < total
    opened = _sigmoid(tl.load(opening_p + at, mask=mask, other=0.0).to(tl.float32))
    x = tl.load(x_p + at, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_p + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(grad_x_p + at, (grad * opened).to(grad_x_p.dtype.element_ty), mask=mask)
    grad_opening = grad * x * opened * (1.0 - opened)
    tl.store(grad_opening_p + at, grad_opening.to(grad_opening_p.dtype.element_ty), mask=mask)


def _gate_empty(opening: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def _gate_run(opening: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    opening, x = opening.contiguous(), x.contiguous()
    y = _gate_empty(opening, x, dtype)
    grid = (triton.cdiv(x.numel(), FLAT),)
    launch(_gate_kernel, grid, x, opening, x, y, x.numel(), FLAT=FLAT, enable_fp_fusion=True)
    return y


def _gate_backward_empty(opening: Tensor, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return opening.new_empty(opening.shape), x.new_empty(x.shape)


def _gate_backward(opening: Tensor, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    opening, x, grad = opening.contiguous(), x.contiguous(), grad.contiguous()
    grads = _gate_backward_empty(opening, x, grad)
    grid = (triton.cdiv(x.numel(), FLAT),)
    launch(_gate_backward_kernel, grid, x, opening, x, grad, *grads, x.numel(), FLAT=FLAT, enable_fp_fusion=True)
    return grads


def _gate_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gate_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_gate_backward_op(*ctx.saved_tensors, grad), None


_gate_op = register("gate", _gate_run, _gate_empty)
_gate_backward_op = register("gate_backward", _gate_backward, _gate_backward_empty)
_gate_op.register_autograd(_gate_gradients, setup_context=_gate_save)


def gate(opening: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """See `ops.gate`."""
    return (_gate_run if is_direct(opening, x) else _gate_op)(opening, x, dtype)

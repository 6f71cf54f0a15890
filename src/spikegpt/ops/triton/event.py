"""Graded events, with a membrane and without: see `ops.event`. Rounds as the reference does."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import BLOCK, CHUNK, given, is_direct, launch, load_tokens, part, register, saved_states, scan_grid

ROWS, WIDTH = 8, 128
"""Tokens and channels a program takes where there is no membrane."""


@part
def _size(h, SIGNED: tl.constexpr):
    return tl.abs(h) if SIGNED else h


@part
def _count(h, threshold, unit, levels, smallest, SIGNED: tl.constexpr):
    over = _size(h, SIGNED) - threshold
    steps = tl.ceil(tl.div_rn(tl.where(over < 0.0, 0.0, over), unit))  # NaN stays NaN
    n = tl.where(steps > levels, levels, tl.where(steps < smallest, 0.0, steps))
    return tl.where(h < 0.0, -n, n) if SIGNED else n


@part
def _onset(threshold, unit, smallest):
    """What |h| must pass for an event to be sent."""
    return threshold + (smallest - 1.0) * unit


@part
def _slope(h, threshold, unit, levels, smallest, window, SIGNED: tl.constexpr):
    """dn/dh."""
    size, margin = _size(h, SIGNED), threshold * window
    passes = (size > _onset(threshold, unit, smallest) - margin) & (size <= threshold + unit * levels + margin)
    return tl.where(passes, 1.0 / unit, 0.0)


@part
def _after(h, n, unit, HARD: tl.constexpr):
    return tl.where(n == 0.0, h, 0.0) if HARD else h - n * unit


@triton.jit
def _forward_kernel(
    x_p, threshold_p, unit_p, leak_p, membrane_p, events_p, membrane_out_p, saved_p, levels, smallest, time,
    channels: tl.constexpr,
    SIGNED: tl.constexpr, HARD: tl.constexpr, SAVE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    batch = tl.program_id(1).to(tl.int64)
    mask = c < channels
    threshold, unit = tl.load(threshold_p + c, mask=mask, other=1.0), tl.load(unit_p + c, mask=mask, other=1.0)
    leak = tl.load(leak_p + c, mask=mask, other=0.0)
    at = batch * time * channels + c
    x_p, events_p = x_p + at, events_p + at
    blocks = time // CHUNK
    saved_p += batch * (blocks + time % CHUNK) * channels + c

    membrane = tl.load(membrane_p + batch * channels + c, mask=mask, other=0.0)
    next_x = load_tokens(x_p, channels, c < tl.minimum(blocks, 1) * channels, CHUNK)
    for block in range(blocks):
        xs = next_x
        if SAVE:
            tl.store(saved_p, membrane, mask=mask)
            saved_p += channels
        x_p += CHUNK * channels
        next_x = load_tokens(x_p, channels, c < tl.minimum(blocks - 1 - block, 1) * channels, CHUNK)
        for i in tl.static_range(CHUNK):
            h = leak * membrane + xs[i]
            n = _count(h, threshold, unit, levels, smallest, SIGNED)
            tl.store(events_p + i * channels, n.to(events_p.dtype.element_ty), mask=mask)
            membrane = _after(h, n, unit, HARD)
        events_p += CHUNK * channels
    for _ in range(blocks * CHUNK, time):
        if SAVE:
            tl.store(saved_p, membrane, mask=mask)
            saved_p += channels
        h = leak * membrane + tl.load(x_p, mask=mask, other=0.0).to(tl.float32)
        n = _count(h, threshold, unit, levels, smallest, SIGNED)
        tl.store(events_p, n.to(events_p.dtype.element_ty), mask=mask)
        membrane = _after(h, n, unit, HARD)
        x_p, events_p = x_p + channels, events_p + channels
    tl.store(membrane_out_p + batch * channels + c, membrane, mask=mask)


@part
def _step_back(
    h, grad_events, grad, threshold, unit, levels, smallest, window, SIGNED: tl.constexpr, HARD: tl.constexpr
):  # fmt: skip
    """Gradient of the charged membrane, from that of the membrane after the token."""
    slope = _slope(h, threshold, unit, levels, smallest, window, SIGNED)
    cut = tl.where(_size(h, SIGNED) > _onset(threshold, unit, smallest), 1.0, 0.0) if HARD else unit * slope
    return grad_events * slope + (grad - grad * cut)


@triton.jit
def _backward_kernel(
    x_p, threshold_p, unit_p, leak_p, saved_p, grad_events_p, grad_out_p, grad_x_p, grad_leak_p, grad_membrane_p,
    levels, smallest, window, time, channels: tl.constexpr,
    SIGNED: tl.constexpr, HARD: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    batch = tl.program_id(1).to(tl.int64)
    mask = c < channels
    threshold, unit = tl.load(threshold_p + c, mask=mask, other=1.0), tl.load(unit_p + c, mask=mask, other=1.0)
    leak = tl.load(leak_p + c, mask=mask, other=0.0)
    blocks = time // CHUNK
    end = (batch + 1) * time * channels + c  # one past the last token; pointers go back from there
    x_p, grad_events_p, grad_x_p = x_p + end, grad_events_p + end, grad_x_p + end
    saved_p += (batch + 1) * (blocks + time % CHUNK) * channels + c

    grad = tl.load(grad_out_p + batch * channels + c, mask=mask, other=0.0)
    grad_leak = tl.zeros((BLOCK,), tl.float32)
    for _ in range(blocks * CHUNK, time):
        saved_p, x_p = saved_p - channels, x_p - channels
        grad_events_p, grad_x_p = grad_events_p - channels, grad_x_p - channels
        membrane = tl.load(saved_p, mask=mask, other=0.0)
        h = leak * membrane + tl.load(x_p, mask=mask, other=0.0).to(tl.float32)
        grad_events = tl.load(grad_events_p, mask=mask, other=0.0).to(tl.float32)
        grad_h = _step_back(h, grad_events, grad, threshold, unit, levels, smallest, window, SIGNED, HARD)
        tl.store(grad_x_p, grad_h.to(grad_x_p.dtype.element_ty), mask=mask)
        grad_leak += grad_h * membrane
        grad = grad_h * leak

    back = CHUNK * channels
    ahead = c < tl.minimum(blocks, 1) * channels
    next_membrane = tl.load(saved_p - channels, mask=ahead, other=0.0)
    next_x = load_tokens(x_p - back, channels, ahead, CHUNK)
    next_grad = load_tokens(grad_events_p - back, channels, ahead, CHUNK)
    for block in range(blocks):
        membrane, xs, grads = next_membrane, next_x, next_grad
        saved_p, x_p = saved_p - channels, x_p - back
        grad_events_p, grad_x_p = grad_events_p - back, grad_x_p - back
        ahead = c < tl.minimum(blocks - 1 - block, 1) * channels
        next_membrane = tl.load(saved_p - channels, mask=ahead, other=0.0)
        next_x = load_tokens(x_p - back, channels, ahead, CHUNK)
        next_grad = load_tokens(grad_events_p - back, channels, ahead, CHUNK)
        before, charges = (), ()
        for i in tl.static_range(CHUNK):
            h = leak * membrane + xs[i]
            before, charges = before + (membrane,), charges + (h,)
            membrane = _after(h, _count(h, threshold, unit, levels, smallest, SIGNED), unit, HARD)
        block_leak = tl.zeros((BLOCK,), tl.float32)
        for i in tl.static_range(CHUNK - 1, -1, -1):
            grad_h = _step_back(charges[i], grads[i], grad, threshold, unit, levels, smallest, window, SIGNED, HARD)
            tl.store(grad_x_p + i * channels, grad_h.to(grad_x_p.dtype.element_ty), mask=mask)
            block_leak += grad_h * before[i]
            grad = grad_h * leak
        grad_leak += block_leak
    tl.store(grad_membrane_p + batch * channels + c, grad, mask=mask)
    tl.store(grad_leak_p + batch * channels + c, grad_leak, mask=mask)


@part
def _tile(rows, channels, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Offsets and mask of a program's tokens and channels, and the channels alone."""
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return row[:, None] * channels + c[None, :], (row[:, None] < rows) & (c[None, :] < channels), c


@triton.jit
def _point_forward_kernel(
    x_p, threshold_p, unit_p, events_p, passes_p, levels, smallest, window, rows, channels,
    SIGNED: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    at, mask, c = _tile(rows, channels, ROWS, WIDTH)
    threshold = tl.load(threshold_p + c, mask=c < channels, other=1.0)[None, :]
    unit = tl.load(unit_p + c, mask=c < channels, other=1.0)[None, :]
    x = tl.load(x_p + at, mask=mask, other=0.0).to(tl.float32)
    n = _count(x, threshold, unit + tl.zeros_like(x), levels, smallest, SIGNED)
    tl.store(events_p + at, n.to(events_p.dtype.element_ty), mask=mask)
    if KEEP:
        slope = _slope(x, threshold, unit, levels, smallest, window, SIGNED)
        tl.store(passes_p + at, (slope != 0.0).to(tl.uint8), mask=mask)


@triton.jit
def _point_backward_kernel(
    unit_p, passes_p, grad_events_p, grad_x_p, rows, channels, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    at, mask, c = _tile(rows, channels, ROWS, WIDTH)
    unit = tl.load(unit_p + c, mask=c < channels, other=1.0)[None, :]
    passes = tl.load(passes_p + at, mask=mask, other=0)
    grad = tl.load(grad_events_p + at, mask=mask, other=0.0).to(tl.float32)
    grad_x = grad * tl.where(passes != 0, 1.0 / unit, 0.0)
    tl.store(grad_x_p + at, grad_x.to(grad_x_p.dtype.element_ty), mask=mask)


def _empty(
    x: Tensor, threshold: Tensor, unit: Tensor, leak: Tensor, membrane: Tensor,
    levels: int, smallest: int, signed: bool, hard: bool, window: float, dtype: torch.dtype, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    events = x.new_empty(x.shape, dtype=dtype)
    return events, membrane.new_empty(membrane.shape), saved_states(x, save=save)


def _run(
    x: Tensor, threshold: Tensor, unit: Tensor, leak: Tensor, membrane: Tensor,
    levels: int, smallest: int, signed: bool, hard: bool, window: float, dtype: torch.dtype, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x, threshold, unit, leak, membrane = (t.contiguous() for t in (x, threshold, unit, leak, membrane))
    outputs = _empty(x, threshold, unit, leak, membrane, levels, smallest, signed, hard, window, dtype, save)
    launch(
        _forward_kernel, scan_grid(x), x,
        x, threshold, unit, leak, membrane, *outputs, float(levels), float(smallest), x.shape[1], x.shape[2],
        SIGNED=signed, HARD=hard, SAVE=save, CHUNK=CHUNK, BLOCK=BLOCK, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return outputs


def _backward_empty(
    x: Tensor, threshold: Tensor, unit: Tensor, leak: Tensor, saved: Tensor, grad_events: Tensor, grad_out: Tensor,
    levels: int, smallest: int, signed: bool, hard: bool, window: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape), leak.new_empty(leak.shape), grad_out.new_empty(grad_out.shape)


def _backward(
    x: Tensor, threshold: Tensor, unit: Tensor, leak: Tensor, saved: Tensor, grad_events: Tensor, grad_out: Tensor,
    levels: int, smallest: int, signed: bool, hard: bool, window: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x, threshold, unit, leak, grad_events, grad_out = (
        t.contiguous() for t in (x, threshold, unit, leak, grad_events, grad_out)
    )
    grad_x, leaks, grad_membrane = torch.empty_like(x), torch.empty_like(grad_out), torch.empty_like(grad_out)
    launch(
        _backward_kernel, scan_grid(x), x,
        x, threshold, unit, leak, saved, grad_events, grad_out, grad_x, leaks, grad_membrane,
        float(levels), float(smallest), window, x.shape[1], x.shape[2],
        SIGNED=signed, HARD=hard, CHUNK=CHUNK, BLOCK=BLOCK, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return grad_x, leaks.sum(0), grad_membrane


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, threshold, unit, leak, _, *ctx.settings, _, _ = inputs
    ctx.set_materialize_grads(False)  # the saved membranes need none
    ctx.save_for_backward(x, threshold, unit, leak, output[2], output[1])


def _gradients(ctx: Any, grad_events: Tensor | None, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *saved, membrane = ctx.saved_tensors
    grad_events, grad_out = given(grad_events, saved[0]), given(grad_out, membrane)
    grad_x, grad_leak, grad_membrane = _backward_op(*saved, grad_events, grad_out, *ctx.settings)
    return grad_x, None, None, grad_leak, grad_membrane, None, None, None, None, None, None, None


_op = register("event", _run, _empty)
_backward_op = register("event_backward", _backward, _backward_empty)
_op.register_autograd(_gradients, setup_context=_save)


def _point_grid(x: Tensor) -> tuple[int, int]:
    rows, channels = x.shape[0] * x.shape[1], x.shape[2]
    return triton.cdiv(rows, ROWS), triton.cdiv(channels, WIDTH)


# Without a membrane the gradient needs to know of the input only whether it passes: a byte is kept instead of the input.


def _point_empty(
    x: Tensor, threshold: Tensor, unit: Tensor, levels: int, smallest: int, signed: bool, window: float,
    dtype: torch.dtype, keep: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape if keep else 0, dtype=torch.uint8)


def _point_run(
    x: Tensor, threshold: Tensor, unit: Tensor, levels: int, smallest: int, signed: bool, window: float,
    dtype: torch.dtype, keep: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x, threshold, unit = (t.contiguous() for t in (x, threshold, unit))
    outputs = _point_empty(x, threshold, unit, levels, smallest, signed, window, dtype, keep)
    launch(
        _point_forward_kernel, _point_grid(x), x,
        x, threshold, unit, *outputs, float(levels), float(smallest), window, x.shape[0] * x.shape[1], x.shape[2],
        SIGNED=signed, KEEP=keep, ROWS=ROWS, WIDTH=WIDTH, enable_fp_fusion=False,
    )  # fmt: skip
    return outputs


def _point_backward_empty(unit: Tensor, passes: Tensor, grad_events: Tensor, dtype: torch.dtype) -> Tensor:
    return grad_events.new_empty(grad_events.shape, dtype=dtype)


def _point_backward(unit: Tensor, passes: Tensor, grad_events: Tensor, dtype: torch.dtype) -> Tensor:
    unit, passes, grad_events = (t.contiguous() for t in (unit, passes, grad_events))
    grad_x = _point_backward_empty(unit, passes, grad_events, dtype)
    rows, channels = grad_events.shape[0] * grad_events.shape[1], grad_events.shape[2]
    launch(
        _point_backward_kernel, _point_grid(grad_events), grad_events,
        unit, passes, grad_events, grad_x, rows, channels, ROWS=ROWS, WIDTH=WIDTH, enable_fp_fusion=False,
    )  # fmt: skip
    return grad_x


def _point_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(inputs[2], output[1])


def _point_gradients(ctx: Any, grad_events: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return _point_backward_op(*ctx.saved_tensors, grad_events, ctx.dtype), *(None,) * 8


_point_op = register("point_event", _point_run, _point_empty)
_point_backward_op = register("point_event_backward", _point_backward, _point_backward_empty)
_point_op.register_autograd(_point_gradients, setup_context=_point_save)


def event(
    x: Tensor, threshold: Tensor, unit: Tensor, leak: Tensor | None, membrane: Tensor,
    levels: int, smallest: int, signed: bool, hard: bool, window: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `ops.event`; `membrane` is given."""
    if leak is None:
        settings = levels, smallest, signed, window, dtype
        if is_direct(x, threshold, unit):
            events, _ = _point_run(x, threshold, unit, *settings, keep=False)
        else:
            events, _ = _point_op(x, threshold, unit, *settings)
        return events, membrane
    direct = is_direct(x, threshold, unit, leak, membrane)
    run = _run if direct else _op
    events, membrane, _ = run(
        x, threshold, unit, leak, membrane, levels, smallest, signed, hard, window, dtype, not direct
    )
    return events, membrane

"""Graded events, with a membrane and without, and their count: `event.cpp` as torch operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .library import (
    Pair,
    Triple,
    _native,
    at,
    empty,
    is_direct,
    packed,
    readable,
    register,
    scan_outputs,
    threads_and_shape,
    typed,
)


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
    dtype: torch.dtype = torch.float32,
) -> Pair:
    """See `ops.event`; `membrane` is given."""
    x, threshold, unit, half = readable(x), threshold.float(), unit.float(), dtype == torch.bfloat16
    if leak is None:
        settings = levels, smallest, signed, window, half
        if is_direct(x, threshold, unit):
            events, _ = _point(x, threshold, unit, *settings, keep=False)
        else:
            events, _ = _point_op(x, threshold, unit, *settings)
        return events.to(dtype), membrane
    leak, membrane = leak.float(), membrane.float()
    run = _event if is_direct(x, threshold, unit, leak, membrane) else _event_op
    events, membrane, _ = run(x, threshold, unit, leak, membrane, levels, smallest, signed, hard, window, half)
    return events.to(dtype), membrane


def tally(events: Tensor, levels: int) -> Tensor:
    """See `ops.tally`."""
    rows = readable(events.detach())
    rows = rows.flatten(0, -2) if rows.dim() > 1 else rows.unsqueeze(0)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    counts = rows.new_empty(rows.shape[0], 2, dtype=torch.int32)
    if counts.numel():
        _native.tally(torch.get_num_threads(), *rows.shape, rows.stride(0), levels, *typed(rows), counts.data_ptr())
    return counts.sum(0)


def _event_empty(
    x: Tensor, threshold: Tensor, unit: Tensor, leak: Tensor, membrane: Tensor, levels: int, smallest: int, signed: bool,
    hard: bool, window: float, half: bool,
) -> Triple:  # fmt: skip
    return scan_outputs(x, half=half)


def _event(
    x: Tensor, threshold: Tensor, unit: Tensor, leak: Tensor, membrane: Tensor, levels: int, smallest: int, signed: bool,
    hard: bool, window: float, half: bool,
) -> Triple:  # fmt: skip
    threshold, unit, x, leak, membrane = packed(threshold, unit, x, leak, membrane)
    events, after, checkpoints = scan_outputs(x, half=half)
    _native.event_forward(
        *threads_and_shape(x), levels, smallest, window, signed, hard, *at(threshold, unit), *typed(x), *at(leak, membrane),
        *typed(events), *at(after, checkpoints),
    )  # fmt: skip
    return events, after, checkpoints


def _event_backward_empty(
    x: Tensor, threshold: Tensor, unit: Tensor, leak: Tensor, membrane: Tensor, checkpoints: Tensor, grad_events: Tensor,
    grad_out: Tensor, levels: int, smallest: int, signed: bool, hard: bool, window: float,
) -> Triple:  # fmt: skip
    return torch.empty_like(x), torch.empty_like(leak), torch.empty_like(membrane)


def _event_backward(
    x: Tensor, threshold: Tensor, unit: Tensor, leak: Tensor, membrane: Tensor, checkpoints: Tensor, grad_events: Tensor,
    grad_out: Tensor, levels: int, smallest: int, signed: bool, hard: bool, window: float,
) -> Triple:  # fmt: skip
    threshold, unit, x, grad_events = packed(threshold, unit, x, grad_events)
    leak, membrane, checkpoints, grad_out = packed(leak, membrane, checkpoints, grad_out)
    grad_x, grad_leak, grad_in = torch.empty_like(x), torch.empty_like(membrane), torch.empty_like(membrane)
    _native.event_backward(
        *threads_and_shape(x), levels, smallest, window, signed, hard, *at(threshold, unit), *typed(x),
        *at(leak, membrane, checkpoints), *typed(grad_events), *at(grad_out), *typed(grad_x), *at(grad_leak, grad_in),
    )  # fmt: skip
    return grad_x, grad_leak.sum(0), grad_in


def _save_event(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    *tensors, levels, smallest, signed, hard, window, _ = inputs
    ctx.settings = levels, smallest, signed, hard, window
    ctx.save_for_backward(*tensors, output[2])


def _event_gradients(ctx: Any, grad_events: Tensor, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_leak, grad_in = _event_backward_op(*ctx.saved_tensors, grad_events, grad_out, *ctx.settings)
    return grad_x, None, None, grad_leak, grad_in, None, None, None, None, None, None


_event_op = register("event", _event, _event_empty)
_event_backward_op = register("event_backward", _event_backward, _event_backward_empty)
_event_op.register_autograd(_event_gradients, setup_context=_save_event)


# Without a membrane the gradient needs to know of the input only whether it passes: a byte is kept instead of the input.


def _point_empty(
    x: Tensor, threshold: Tensor, unit: Tensor, levels: int, smallest: int, signed: bool, window: float, half: bool,
    keep: bool = True,
) -> Pair:  # fmt: skip
    return empty(x, half), x.new_empty(x.shape if keep else 0, dtype=torch.uint8)


def _point(
    x: Tensor, threshold: Tensor, unit: Tensor, levels: int, smallest: int, signed: bool, window: float, half: bool,
    keep: bool = True,
) -> Pair:  # fmt: skip
    threshold, unit, x = packed(threshold, unit, x)
    events, passes = empty(x, half), x.new_empty(x.shape if keep else 0, dtype=torch.uint8)
    threads, batch, time, channels = threads_and_shape(x)
    _native.point_event_forward(
        threads, batch * time, channels, levels, smallest, window, signed, *at(threshold, unit), *typed(x, events),
        passes.data_ptr(),
    )  # fmt: skip
    return events, passes


def _point_backward_empty(unit: Tensor, passes: Tensor, grad_events: Tensor, half: bool) -> Tensor:
    return empty(grad_events, half)


def _point_backward(unit: Tensor, passes: Tensor, grad_events: Tensor, half: bool) -> Tensor:
    unit, passes, grad_events = packed(unit, passes, grad_events)
    grad_x = empty(grad_events, half)
    threads, batch, time, channels = threads_and_shape(grad_events)
    _native.point_event_backward(threads, batch * time, channels, *at(unit, passes), *typed(grad_events, grad_x))
    return grad_x


def _save_point(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
    ctx.half = inputs[0].dtype == torch.bfloat16
    ctx.save_for_backward(inputs[2], output[1])


def _point_gradients(ctx: Any, grad_events: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return _point_backward_op(*ctx.saved_tensors, grad_events, ctx.half), *(None,) * 8


_point_op = register("point_event", _point, _point_empty)
_point_backward_op = register("point_event_backward", _point_backward, _point_backward_empty)
_point_op.register_autograd(_point_gradients, setup_context=_save_point)

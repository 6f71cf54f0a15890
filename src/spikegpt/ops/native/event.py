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
    settings = levels, smallest, signed, hard, window, half
    if leak is None:
        if is_direct(x, threshold, unit):
            events = _at_once(x, threshold, unit, levels, smallest, signed, window, half)
        else:
            events, _, _ = _event_op(x, threshold, unit, None, None, *settings)
        return events.to(dtype), membrane
    leak, membrane = leak.float(), membrane.float()
    run = _event if is_direct(x, threshold, unit, leak, membrane) else _event_op
    events, membrane, _ = run(x, threshold, unit, leak, membrane, *settings)
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


# One operator: without `leak` there is no membrane either, and what would be of it is empty.


def _event_empty(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    leak: Tensor | None,
    membrane: Tensor | None,
    levels: int,
    smallest: int,
    signed: bool,
    hard: bool,
    window: float,
    half: bool = False,
) -> Triple:
    return scan_outputs(x, half=half) if leak is not None else (empty(x, half), x.new_empty(0), x.new_empty(0))


def _event(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    leak: Tensor | None,
    membrane: Tensor | None,
    levels: int,
    smallest: int,
    signed: bool,
    hard: bool,
    window: float,
    half: bool = False,
) -> Triple:
    if leak is None or membrane is None:
        events = _at_once(x, threshold, unit, levels, smallest, signed, window, half)
        return events, x.new_empty(0), x.new_empty(0)
    threshold, unit, x, leak, membrane = packed(threshold, unit, x, leak, membrane)
    events, after, checkpoints = scan_outputs(x, half=half)
    _native.event_forward(
        *threads_and_shape(x), levels, smallest, window, signed, hard, *at(threshold, unit), *typed(x), *at(leak, membrane),
        *typed(events), *at(after, checkpoints),
    )  # fmt: skip
    return events, after, checkpoints


def _at_once(
    x: Tensor, threshold: Tensor, unit: Tensor, levels: int, smallest: int, signed: bool, window: float, half: bool
) -> Tensor:
    """The events of neurons that remember nothing."""
    threshold, unit, x = packed(threshold, unit, x)
    events = empty(x, half)
    threads, batch, time, channels = threads_and_shape(x)
    settings = levels, smallest, window, signed
    _native.point_event_forward(threads, batch * time, channels, *settings, *at(threshold, unit), *typed(x, events))
    return events


def _event_backward_empty(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    leak: Tensor | None,
    membrane: Tensor | None,
    checkpoints: Tensor,
    grad_events: Tensor,
    grad_out: Tensor,
    levels: int,
    smallest: int,
    signed: bool,
    hard: bool,
    window: float,
) -> Triple:
    of_leak = x.new_empty(0) if leak is None else torch.empty_like(leak)
    return torch.empty_like(x), of_leak, x.new_empty(0) if membrane is None else torch.empty_like(membrane)


def _event_backward(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    leak: Tensor | None,
    membrane: Tensor | None,
    checkpoints: Tensor,
    grad_events: Tensor,
    grad_out: Tensor,
    levels: int,
    smallest: int,
    signed: bool,
    hard: bool,
    window: float,
) -> Triple:
    threshold, unit, x, grad_events = packed(threshold, unit, x, grad_events)
    grad_x = torch.empty_like(x)
    if leak is None or membrane is None:
        threads, batch, time, channels = threads_and_shape(x)
        settings = levels, smallest, window, signed
        _native.point_event_backward(
            threads, batch * time, channels, *settings, *at(threshold, unit), *typed(x, grad_events, grad_x)
        )
        return grad_x, x.new_empty(0), x.new_empty(0)
    leak, membrane, checkpoints, grad_out = packed(leak, membrane, checkpoints, grad_out)
    grad_leak, grad_in = torch.empty_like(membrane), torch.empty_like(membrane)
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
    remembers = ctx.saved_tensors[3] is not None
    of_memory = (grad_leak, grad_in) if remembers else (None, None)
    return grad_x, None, None, *of_memory, None, None, None, None, None, None


_event_op = register("event", _event, _event_empty)
_event_backward_op = register("event_backward", _event_backward, _event_backward_empty)
_event_op.register_autograd(_event_gradients, setup_context=_save_event)

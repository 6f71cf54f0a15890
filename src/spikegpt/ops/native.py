"""The C++ kernels along time as torch custom operators, forward and backward, on contiguous CPU tensors.

The same signatures as `reference`, and gates, residuals and half types besides: what the kernels take as bfloat16 they
compute in float32. Forward operators also return checkpoints of the state, one every CHUNK tokens, from which the
backward ones replay a chunk at a time. Where no gradient is wanted and nothing is being compiled the kernels are called
directly: a dispatch costs more than one token's work. For each operator `_<name>_empty` makes the outputs (and is what a
compiler traces), `_<name>` fills them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .library import CHUNK, MISSING, _native, at, empty, is_direct, packed, readable, register, threads_and_shape, typed
from .passes import cross_entropy, divergence, dropout, gate, relu_squared, shift_mix, tally

__all__ = [
    "MISSING", "cross_entropy", "divergence", "dropout", "event", "gate", "gated_wkv", "is_direct", "lif", "lif_add", "linear",
    "relu_squared", "shift_mix", "tally", "wkv",
]  # fmt: skip

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


def wkv(decay: Tensor, first: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Pair:
    """See `ops.wkv`; `state` is given."""
    return gated_wkv(decay, first, k, v, state, None, torch.float32)


def gated_wkv(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, state: Tensor, gate: Tensor | None, dtype: torch.dtype
) -> Pair:
    """See `ops.gated_wkv`; `state` is given, and the gate may be missing."""
    inputs = decay.float(), first.float(), readable(k), readable(v), state.float()
    gates = () if gate is None else (readable(gate),)
    run = _wkv if is_direct(*inputs, *gates) else _wkv_op
    y, state, _ = run(*inputs, gates[0] if gates else None, dtype == torch.bfloat16)
    return y.to(dtype), state


def lif(x: Tensor, membrane: Tensor, tau: float, threshold: float, alpha: float) -> Pair:
    """See `ops.lif`; `membrane` is given."""
    return lif_add(x, None, membrane, tau, threshold, alpha)


def lif_add(x: Tensor, residual: Tensor | None, membrane: Tensor, tau: float, threshold: float, alpha: float) -> Pair:
    """See `ops.lif_add`; `membrane` is given, the residual is float32 or missing."""
    inputs = readable(x), membrane.float()
    run = _lif if is_direct(*inputs, *(() if residual is None else (residual,))) else _lif_op
    spikes, membrane, _ = run(*inputs, tau, threshold, alpha, residual)
    return spikes, membrane


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
        point = _point_event if is_direct(x, threshold, unit) else _point_event_op
        return point(x, threshold, unit, levels, smallest, signed, window, half).to(dtype), membrane
    leak, membrane = leak.float(), membrane.float()
    run = _event if is_direct(x, threshold, unit, leak, membrane) else _event_op
    events, membrane, _ = run(x, threshold, unit, leak, membrane, levels, smallest, signed, hard, window, half)
    return events.to(dtype), membrane


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """See `ops.linear`: a matrix product of few rows, bound by the reading of the weights."""
    inputs, outputs = packed(x, weight), x.new_empty(*x.shape[:-1], weight.shape[0])
    _native.matvec(
        torch.get_num_threads(), x.numel() // x.shape[-1], x.shape[-1], weight.shape[0], *at(*inputs, outputs)
    )
    return outputs


def _outputs(x: Tensor, *state: int, half: bool = False) -> Triple:
    """Output [B, T, C], state [B, *state, C], checkpoints [B, N, *state, C]."""
    batch, time, channels = x.shape
    saved = max(time - 1, 0) // CHUNK
    new, wide = x.new_empty, torch.float32
    return empty(x, half), new(batch, *state, channels, dtype=wide), new(batch, saved, *state, channels, dtype=wide)


def _gate_at(gate: Tensor | None) -> tuple[int, bool]:
    return (0, False) if gate is None else typed(gate)[0]


def _wkv_empty(
    decay: Tensor,
    first: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    gate: Tensor | None = None,
    half: bool = False,
) -> Triple:
    return _outputs(k, 3, half=half)


def _wkv(
    decay: Tensor,
    first: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    gate: Tensor | None = None,
    half: bool = False,
) -> Triple:
    decay, first, k, v, state = packed(decay, first, k, v, state)
    gate = None if gate is None else gate.contiguous()
    y, after, checkpoints = _outputs(k, 3, half=half)
    _native.wkv_forward(
        *threads_and_shape(k), *at(decay, first), *typed(k, v), _gate_at(gate), *at(state), *typed(y),
        *at(after, checkpoints),
    )  # fmt: skip
    return y, after, checkpoints


def _wkv_backward_empty(
    decay: Tensor,
    first: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    gate: Tensor | None,
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    new = torch.empty_like
    return new(decay), new(first), new(k), new(v), new(state), new(state[:0] if gate is None else gate)


def _wkv_backward(
    decay: Tensor,
    first: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    gate: Tensor | None,
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    decay, first, k, v, state, checkpoints = packed(decay, first, k, v, state, checkpoints)
    gate = None if gate is None else gate.contiguous()
    grad_y, grad_out = packed(grad_y, grad_out)
    batch, _, channels = k.shape
    rows = state.new_empty(2, batch, channels)
    _, _, grad_k, grad_v, grad_state, grad_gate = _wkv_backward_empty(
        decay, first, k, v, state, gate, checkpoints, grad_y, grad_out
    )
    _native.wkv_backward(
        *threads_and_shape(k), *at(decay, first), *typed(k, v), _gate_at(gate), *at(state, checkpoints),
        *typed(grad_y), *at(grad_out, *rows), *typed(grad_k, grad_v, grad_gate), *at(grad_state),
    )  # fmt: skip
    return rows[0].sum(0), rows[1].sum(0), grad_k, grad_v, grad_state, grad_gate


def _save_wkv(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    ctx.save_for_backward(*inputs[:6], output[2])


def _wkv_gradients(ctx: Any, grad_y: Tensor, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # unpacked once: under activation checkpointing a second time is an error
    *grads, grad_gate = _wkv_backward_op(*saved, grad_y, grad_out)
    return *grads, None if saved[5] is None else grad_gate, None


_wkv_op = register("wkv", _wkv, _wkv_empty)
_wkv_backward_op = register("wkv_backward", _wkv_backward, _wkv_backward_empty)
_wkv_op.register_autograd(_wkv_gradients, setup_context=_save_wkv)


def _lif_empty(
    x: Tensor, membrane: Tensor, tau: float, threshold: float, alpha: float, residual: Tensor | None = None
) -> Triple:
    return _outputs(x)


def _lif(
    x: Tensor, membrane: Tensor, tau: float, threshold: float, alpha: float, residual: Tensor | None = None
) -> Triple:
    x, membrane = packed(x, membrane)
    residual = None if residual is None else residual.contiguous()
    outputs = _outputs(x)
    _native.lif_forward(
        *threads_and_shape(x), tau, threshold, alpha, *typed(x), *at(membrane),
        0 if residual is None else residual.data_ptr(), *at(*outputs),
    )  # fmt: skip
    return outputs


def _lif_backward_empty(
    x: Tensor,
    membrane: Tensor,
    checkpoints: Tensor,
    grad_spikes: Tensor,
    grad_out: Tensor,
    tau: float,
    threshold: float,
    alpha: float,
) -> Pair:
    return x.new_empty(x.shape), x.new_empty(membrane.shape, dtype=torch.float32)


def _lif_backward(
    x: Tensor,
    membrane: Tensor,
    checkpoints: Tensor,
    grad_spikes: Tensor,
    grad_out: Tensor,
    tau: float,
    threshold: float,
    alpha: float,
) -> Pair:
    x, *others = packed(x, membrane, checkpoints, grad_spikes, grad_out)
    grad_x, grad_in = torch.empty_like(x), torch.empty_like(others[0])
    settings = tau, threshold, alpha
    _native.lif_backward(*threads_and_shape(x), *settings, *typed(x), *at(*others), *typed(grad_x), *at(grad_in))
    return grad_x, grad_in


def _save_lif(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    x, membrane, *ctx.settings, residual = inputs
    ctx.added = residual is not None
    ctx.save_for_backward(x, membrane, output[2])


def _lif_gradients(ctx: Any, grad_spikes: Tensor, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = _lif_backward_op(*ctx.saved_tensors, grad_spikes, grad_out, *ctx.settings)
    return *grads, None, None, None, grad_spikes if ctx.added else None


_lif_op = register("lif", _lif, _lif_empty)
_lif_backward_op = register("lif_backward", _lif_backward, _lif_backward_empty)
_lif_op.register_autograd(_lif_gradients, setup_context=_save_lif)


def _event_empty(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    leak: Tensor,
    membrane: Tensor,
    levels: int,
    smallest: int,
    signed: bool,
    hard: bool,
    window: float,
    half: bool = False,
) -> Triple:
    return _outputs(x, half=half)


def _event(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    leak: Tensor,
    membrane: Tensor,
    levels: int,
    smallest: int,
    signed: bool,
    hard: bool,
    window: float,
    half: bool = False,
) -> Triple:
    threshold, unit, x, leak, membrane = packed(threshold, unit, x, leak, membrane)
    events, after, checkpoints = _outputs(x, half=half)
    _native.event_forward(
        *threads_and_shape(x), levels, smallest, window, signed, hard, *at(threshold, unit), *typed(x), *at(leak, membrane),
        *typed(events), *at(after, checkpoints),
    )  # fmt: skip
    return events, after, checkpoints


def _event_backward_empty(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    leak: Tensor,
    membrane: Tensor,
    checkpoints: Tensor,
    grad_events: Tensor,
    grad_out: Tensor,
    levels: int,
    smallest: int,
    signed: bool,
    hard: bool,
    window: float,
) -> Triple:
    return torch.empty_like(x), torch.empty_like(leak), torch.empty_like(membrane)


def _event_backward(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    leak: Tensor,
    membrane: Tensor,
    checkpoints: Tensor,
    grad_events: Tensor,
    grad_out: Tensor,
    levels: int,
    smallest: int,
    signed: bool,
    hard: bool,
    window: float,
) -> Triple:
    threshold, unit, x, leak, membrane = packed(threshold, unit, x, leak, membrane)
    checkpoints, grad_events, grad_out = packed(checkpoints, grad_events, grad_out)
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


def _point_event_empty(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    levels: int,
    smallest: int,
    signed: bool,
    window: float,
    half: bool = False,
) -> Tensor:
    return empty(x, half)


def _point_event(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    levels: int,
    smallest: int,
    signed: bool,
    window: float,
    half: bool = False,
) -> Tensor:
    threshold, unit, x = packed(threshold, unit, x)
    events = empty(x, half)
    threads, batch, time, channels = threads_and_shape(x)
    settings = levels, smallest, window, signed
    _native.point_event_forward(threads, batch * time, channels, *settings, *at(threshold, unit), *typed(x, events))
    return events


def _point_event_backward_empty(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    grad_events: Tensor,
    levels: int,
    smallest: int,
    signed: bool,
    window: float,
) -> Tensor:
    return x.new_empty(x.shape)


def _point_event_backward(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    grad_events: Tensor,
    levels: int,
    smallest: int,
    signed: bool,
    window: float,
) -> Tensor:
    threshold, unit, x, grad_events = packed(threshold, unit, x, grad_events)
    grad_x = torch.empty_like(x)
    threads, batch, time, channels = threads_and_shape(x)
    settings = levels, smallest, window, signed
    _native.point_event_backward(
        threads, batch * time, channels, *settings, *at(threshold, unit), *typed(x, grad_events, grad_x)
    )
    return grad_x


def _save_point_event(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, threshold, unit, *ctx.settings, _ = inputs
    ctx.save_for_backward(x, threshold, unit)


def _point_event_gradients(ctx: Any, grad_events: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = _point_event_backward_op(*ctx.saved_tensors, grad_events, *ctx.settings)
    return grad_x, None, None, None, None, None, None, None


_point_event_op = register("point_event", _point_event, _point_event_empty)
_point_event_backward_op = register("point_event_backward", _point_event_backward, _point_event_backward_empty)
_point_event_op.register_autograd(_point_event_gradients, setup_context=_save_point_event)

"""The C++ kernels as torch custom operators, forward and backward, on contiguous float32 CPU tensors.

The same signatures as `reference`. Forward operators also return checkpoints of the state, one every CHUNK tokens, from
which the backward ones replay a chunk at a time. Where no gradient is wanted and nothing is being compiled the kernels
are called directly: a dispatch costs more than one token's work. For each operator `_<name>_empty` makes the outputs
(and is what a compiler traces), `_<name>` fills them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    import spikegpt.ops._native as _native
except ImportError as error:
    _native: Any = None
    MISSING: str | None = f"the C++ library cannot be loaded ({error}); install spikegpt where there is a C++ compiler"
    CHUNK = 32
else:
    MISSING = None
    CHUNK = _native.CHUNK

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


def wkv(decay: Tensor, first: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Pair:
    """See `ops.wkv`; `state` is given."""
    run = _wkv if is_direct(decay, first, k, v, state) else _wkv_op
    y, state, _ = run(decay, first, k, v, state)
    return y, state


def lif(x: Tensor, membrane: Tensor, tau: float, threshold: float, alpha: float) -> Pair:
    """See `ops.lif`; `membrane` is given."""
    run = _lif if is_direct(x, membrane) else _lif_op
    spikes, membrane, _ = run(x, membrane, tau, threshold, alpha)
    return spikes, membrane


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
) -> Pair:
    """See `ops.event`; `membrane` is given."""
    if leak is None:
        point = _point_event if is_direct(x, threshold, unit) else _point_event_op
        return point(x, threshold, unit, levels, signed, window), membrane
    run = _event if is_direct(x, threshold, unit, leak, membrane) else _event_op
    events, membrane, _ = run(x, threshold, unit, leak, membrane, levels, signed, hard, window)
    return events, membrane


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """See `ops.linear`: a matrix product of few rows, bound by the reading of the weights."""
    inputs, outputs = _packed(x, weight), x.new_empty(*x.shape[:-1], weight.shape[0])
    _native.matvec(
        torch.get_num_threads(), x.numel() // x.shape[-1], x.shape[-1], weight.shape[0], *_at(*inputs, outputs)
    )
    return outputs


def is_direct(*tensors: Tensor) -> bool:
    """Whether kernels may be called without a dispatch: no gradient wanted, nothing being compiled."""
    return (
        not torch.compiler.is_compiling()
        and all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    )


def _register(name: str, run: Callable[..., Any], empty: Callable[..., Any]) -> Any:
    operator = torch.library.custom_op(f"spikegpt::{name}", run, mutates_args=(), device_types="cpu")
    operator.register_fake(empty)
    return operator


def _packed(*tensors: Tensor) -> list[Tensor]:
    return [t.contiguous() for t in tensors]


def _at(*tensors: Tensor) -> list[int]:
    return [t.data_ptr() for t in tensors]


def _threads_and_shape(x: Tensor) -> tuple[int, int, int, int]:
    batch, time, channels = x.shape
    return torch.get_num_threads(), batch, time, channels


def _outputs(x: Tensor, *state: int) -> Triple:
    """Output [B, T, C], state [B, *state, C], checkpoints [B, N, *state, C]."""
    batch, time, channels = x.shape
    saved = max(time - 1, 0) // CHUNK
    return x.new_empty(x.shape), x.new_empty(batch, *state, channels), x.new_empty(batch, saved, *state, channels)


def _wkv_empty(decay: Tensor, first: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Triple:
    return _outputs(k, 3)


def _wkv(decay: Tensor, first: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Triple:
    inputs, outputs = _packed(decay, first, k, v, state), _outputs(k, 3)
    _native.wkv_forward(*_threads_and_shape(k), *_at(*inputs, *outputs))
    return outputs


def _wkv_backward_empty(
    decay: Tensor,
    first: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    new = k.new_empty
    return new(decay.shape), new(first.shape), new(k.shape), new(v.shape), new(state.shape)


def _wkv_backward(
    decay: Tensor,
    first: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = _packed(decay, first, k, v, state, checkpoints, grad_y, grad_out)
    batch, _, channels = k.shape
    rows = k.new_empty(batch, channels), k.new_empty(batch, channels)
    grads = k.new_empty(k.shape), k.new_empty(v.shape), k.new_empty(state.shape)
    _native.wkv_backward(*_threads_and_shape(k), *_at(*inputs, *rows, *grads))
    return rows[0].sum(0), rows[1].sum(0), *grads


def _save_wkv(ctx: Any, inputs: tuple[Tensor, ...], output: Triple) -> None:
    ctx.save_for_backward(*inputs, output[2])


def _wkv_gradients(ctx: Any, grad_y: Tensor, grad_out: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return _wkv_backward_op(*ctx.saved_tensors, grad_y, grad_out)


_wkv_op = _register("wkv", _wkv, _wkv_empty)
_wkv_backward_op = _register("wkv_backward", _wkv_backward, _wkv_backward_empty)
_wkv_op.register_autograd(_wkv_gradients, setup_context=_save_wkv)


def _lif_empty(x: Tensor, membrane: Tensor, tau: float, threshold: float, alpha: float) -> Triple:
    return _outputs(x)


def _lif(x: Tensor, membrane: Tensor, tau: float, threshold: float, alpha: float) -> Triple:
    inputs, outputs = _packed(x, membrane), _outputs(x)
    _native.lif_forward(*_threads_and_shape(x), tau, threshold, alpha, *_at(*inputs, *outputs))
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
    return x.new_empty(x.shape), x.new_empty(membrane.shape)


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
    inputs = _packed(x, membrane, checkpoints, grad_spikes, grad_out)
    grads = x.new_empty(x.shape), x.new_empty(membrane.shape)
    _native.lif_backward(*_threads_and_shape(x), tau, threshold, alpha, *_at(*inputs, *grads))
    return grads


def _save_lif(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    x, membrane, *ctx.settings = inputs
    ctx.save_for_backward(x, membrane, output[2])


def _lif_gradients(ctx: Any, grad_spikes: Tensor, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = _lif_backward_op(*ctx.saved_tensors, grad_spikes, grad_out, *ctx.settings)
    return *grads, None, None, None


_lif_op = _register("lif", _lif, _lif_empty)
_lif_backward_op = _register("lif_backward", _lif_backward, _lif_backward_empty)
_lif_op.register_autograd(_lif_gradients, setup_context=_save_lif)


def _event_empty(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    leak: Tensor,
    membrane: Tensor,
    levels: int,
    signed: bool,
    hard: bool,
    window: float,
) -> Triple:
    return _outputs(x)


def _event(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    leak: Tensor,
    membrane: Tensor,
    levels: int,
    signed: bool,
    hard: bool,
    window: float,
) -> Triple:
    inputs, outputs = _packed(threshold, unit, x, leak, membrane), _outputs(x)
    _native.event_forward(*_threads_and_shape(x), levels, window, signed, hard, *_at(*inputs, *outputs))
    return outputs


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
    signed: bool,
    hard: bool,
    window: float,
) -> Triple:
    return x.new_empty(x.shape), x.new_empty(leak.shape), x.new_empty(membrane.shape)


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
    signed: bool,
    hard: bool,
    window: float,
) -> Triple:
    inputs = _packed(threshold, unit, x, leak, membrane, checkpoints, grad_events, grad_out)
    grad_x, grad_leak, grad_in = x.new_empty(x.shape), x.new_empty(membrane.shape), x.new_empty(membrane.shape)
    settings = levels, window, signed, hard
    _native.event_backward(*_threads_and_shape(x), *settings, *_at(*inputs, grad_x, grad_leak, grad_in))
    return grad_x, grad_leak.sum(0), grad_in


def _save_event(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    *tensors, ctx.levels, ctx.signed, ctx.hard, ctx.window = inputs
    ctx.save_for_backward(*tensors, output[2])


def _event_gradients(ctx: Any, grad_events: Tensor, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    settings = ctx.levels, ctx.signed, ctx.hard, ctx.window
    grad_x, grad_leak, grad_in = _event_backward_op(*ctx.saved_tensors, grad_events, grad_out, *settings)
    return grad_x, None, None, grad_leak, grad_in, None, None, None, None


_event_op = _register("event", _event, _event_empty)
_event_backward_op = _register("event_backward", _event_backward, _event_backward_empty)
_event_op.register_autograd(_event_gradients, setup_context=_save_event)


def _point_event_empty(x: Tensor, threshold: Tensor, unit: Tensor, levels: int, signed: bool, window: float) -> Tensor:
    return x.new_empty(x.shape)


def _point_event(x: Tensor, threshold: Tensor, unit: Tensor, levels: int, signed: bool, window: float) -> Tensor:
    inputs, events = _packed(threshold, unit, x), x.new_empty(x.shape)
    threads, batch, time, channels = _threads_and_shape(x)
    _native.point_event_forward(threads, batch * time, channels, levels, window, signed, *_at(*inputs, events))
    return events


def _point_event_backward_empty(
    x: Tensor, threshold: Tensor, unit: Tensor, grad_events: Tensor, levels: int, signed: bool, window: float
) -> Tensor:
    return x.new_empty(x.shape)


def _point_event_backward(
    x: Tensor, threshold: Tensor, unit: Tensor, grad_events: Tensor, levels: int, signed: bool, window: float
) -> Tensor:
    inputs, grad_x = _packed(threshold, unit, x, grad_events), x.new_empty(x.shape)
    threads, batch, time, channels = _threads_and_shape(x)
    _native.point_event_backward(threads, batch * time, channels, levels, window, signed, *_at(*inputs, grad_x))
    return grad_x


def _save_point_event(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, threshold, unit, *ctx.settings = inputs
    ctx.save_for_backward(x, threshold, unit)


def _point_event_gradients(ctx: Any, grad_events: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = _point_event_backward_op(*ctx.saved_tensors, grad_events, *ctx.settings)
    return grad_x, None, None, None, None, None


_point_event_op = _register("point_event", _point_event, _point_event_empty)
_point_event_backward_op = _register("point_event_backward", _point_event_backward, _point_event_backward_empty)
_point_event_op.register_autograd(_point_event_gradients, setup_context=_save_point_event)

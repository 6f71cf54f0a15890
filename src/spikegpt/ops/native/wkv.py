"""RWKV-4's weighted average, gated or not: `wkv.cpp` as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .library import (
    Pair,
    Triple,
    _native,
    at,
    is_direct,
    packed,
    readable,
    register,
    scan_outputs,
    threads_and_shape,
    typed,
)


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
    return scan_outputs(k, 3, half=half)


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
    y, after, checkpoints = scan_outputs(k, 3, half=half)
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

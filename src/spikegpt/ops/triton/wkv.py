"""The WKV average, with or without the receptance gate: see `ops.wkv`, `ops.gated_wkv`."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import BLOCK, CHUNK, given, is_direct, launch, load_tokens, part, register, saved_states, scan_grid
from .launch import divide as _divide
from .launch import exp as _exp
from .launch import sigmoid as _sigmoid


@part
def _weigh(difference):
    """Weights e^(a - m), e^(b - m) with m = max(a, b), given a - b: one of them is e^0."""
    other = _exp(-tl.abs(difference))
    return tl.where(difference < 0, other, 1.0), tl.where(difference < 0, 1.0, other)


@part
def _average(n, d, e, first, k, v):
    past, now = _weigh(e - (first + k))
    return _divide(past * n + now * v, past * d + now)


@part
def _update(n, d, e, decay, k, v):
    faded = e + decay
    past, now = _weigh(faded - k)
    return past * n + now * v, past * d + now, tl.maximum(faded, k, propagate_nan=tl.PropagateNan.ALL)


@part
def _put_state(pointer, channels, mask, n, d, e):
    tl.store(pointer, n, mask=mask)
    tl.store(pointer + channels, d, mask=mask)
    tl.store(pointer + 2 * channels, e, mask=mask)


@triton.jit
def _forward_kernel(
    decay_p, first_p, k_p, v_p, gate_p, state_p, y_p, state_out_p, saved_p, time, channels: tl.constexpr,
    GATED: tl.constexpr, SAVE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    batch = tl.program_id(1).to(tl.int64)
    mask = c < channels
    decay, first = tl.load(decay_p + c, mask=mask, other=0.0), tl.load(first_p + c, mask=mask, other=0.0)
    at = batch * time * channels + c
    k_p, v_p, y_p, gate_p = k_p + at, v_p + at, y_p + at, gate_p + at
    state_p, state_out_p = state_p + batch * 3 * channels + c, state_out_p + batch * 3 * channels + c
    blocks = time // CHUNK
    saved_p += batch * (blocks + time % CHUNK) * 3 * channels + c

    n, d, e = load_tokens(state_p, channels, mask, 3)
    ahead = c < tl.minimum(blocks, 1) * channels
    next_k, next_v = load_tokens(k_p, channels, ahead, CHUNK), load_tokens(v_p, channels, ahead, CHUNK)
    next_gate = load_tokens(gate_p, channels, ahead, CHUNK if GATED else 0)
    for block in range(blocks):
        ks, vs, gates = next_k, next_v, next_gate
        if SAVE:
            _put_state(saved_p, channels, mask, n, d, e)
            saved_p += 3 * channels
        k_p, v_p, gate_p = k_p + CHUNK * channels, v_p + CHUNK * channels, gate_p + CHUNK * channels
        ahead = c < tl.minimum(blocks - 1 - block, 1) * channels
        next_k, next_v = load_tokens(k_p, channels, ahead, CHUNK), load_tokens(v_p, channels, ahead, CHUNK)
        next_gate = load_tokens(gate_p, channels, ahead, CHUNK if GATED else 0)
        for i in tl.static_range(CHUNK):
            y = _average(n, d, e, first, ks[i], vs[i])
            if GATED:
                y *= _sigmoid(gates[i])
            tl.store(y_p + i * channels, y.to(y_p.dtype.element_ty), mask=mask)
            n, d, e = _update(n, d, e, decay, ks[i], vs[i])
        y_p += CHUNK * channels
    for _ in range(blocks * CHUNK, time):
        if SAVE:
            _put_state(saved_p, channels, mask, n, d, e)
            saved_p += 3 * channels
        k = tl.load(k_p, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(v_p, mask=mask, other=0.0).to(tl.float32)
        y = _average(n, d, e, first, k, v)
        if GATED:
            y *= _sigmoid(tl.load(gate_p, mask=mask, other=0.0).to(tl.float32))
        tl.store(y_p, y.to(y_p.dtype.element_ty), mask=mask)
        n, d, e = _update(n, d, e, decay, k, v)
        k_p, v_p, gate_p, y_p = k_p + channels, v_p + channels, gate_p + channels, y_p + channels
    _put_state(state_out_p, channels, mask, n, d, e)


@part
def _step_back(n, d, e, decay, first, k, v, grad_y, gn, gd, ge):
    """Gradients of k, v, first, decay and of the state before a token, from that of the state after it.

    A result that does not depend on the choice of the max exponent has d/de = n d/dn + d d/dd; `ge` holds what exceeds
    that, and travels to whichever exponent was the maximum. Also the output y, for the gate's gradient.
    """
    out_past, out_now = _weigh(e - (first + k))
    difference = e + decay - k
    past, now = _weigh(difference)
    inverse = _divide(1.0, out_past * d + out_now)
    y = (out_past * n + out_now * v) * inverse
    g = grad_y * inverse
    # (d v - n) over the sum is v - y, without its cancellation
    grad_first = out_now * g * out_past * (d * v - n) * inverse
    excess = ge * tl.where(difference > 0, 1.0, tl.where(difference == 0, 0.5, 0.0))
    grad_v = out_now * g + now * gn
    grad_k = grad_first + now * (gn * v + gd) + (ge - excess)
    grad_decay = past * (gn * n + gd * d) + excess
    return grad_k, grad_v, grad_first, grad_decay, out_past * g + past * gn, past * gd - out_past * g * y, excess, y


@part
def _step_back_gated(n, d, e, decay, first, k, v, gate, grad_out, gn, gd, ge, GATED: tl.constexpr):
    """`_step_back`, through the gate too: its gradient comes last."""
    open_ = 1.0
    if GATED:
        open_ = _sigmoid(gate)
    gk, gv, gf, gw, gn, gd, ge, y = _step_back(n, d, e, decay, first, k, v, grad_out * open_, gn, gd, ge)
    return gk, gv, gf, gw, gn, gd, ge, grad_out * y * open_ * (1.0 - open_)


@triton.jit
def _backward_kernel(
    decay_p, first_p, k_p, v_p, gate_p, state_p, state_out_p, saved_p, grad_y_p, grad_out_p,
    grad_decay_p, grad_first_p, grad_k_p, grad_v_p, grad_gate_p, grad_state_p, time, channels: tl.constexpr,
    GATED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    batch = tl.program_id(1).to(tl.int64)
    mask = c < channels
    decay, first = tl.load(decay_p + c, mask=mask, other=0.0), tl.load(first_p + c, mask=mask, other=0.0)
    blocks = time // CHUNK
    end = (batch + 1) * time * channels + c  # one past the last token; pointers go back from there
    k_p, v_p, gate_p, grad_y_p = k_p + end, v_p + end, gate_p + end, grad_y_p + end
    grad_k_p, grad_v_p, grad_gate_p = grad_k_p + end, grad_v_p + end, grad_gate_p + end
    states = batch * 3 * channels + c
    saved_p += (batch + 1) * (blocks + time % CHUNK) * 3 * channels + c

    gn, gd, ge = load_tokens(grad_out_p + states, channels, mask, 3)
    n, d, e = load_tokens(state_out_p + states, channels, mask, 3)
    ge -= gn * n + gd * d
    total_decay, total_first = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for _ in range(blocks * CHUNK, time):
        saved_p -= 3 * channels
        k_p, v_p, gate_p, grad_y_p = k_p - channels, v_p - channels, gate_p - channels, grad_y_p - channels
        grad_k_p, grad_v_p, grad_gate_p = grad_k_p - channels, grad_v_p - channels, grad_gate_p - channels
        n, d, e = load_tokens(saved_p, channels, mask, 3)
        k = tl.load(k_p, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(v_p, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(gate_p, mask=mask, other=0.0).to(tl.float32) if GATED else k
        grad_y = tl.load(grad_y_p, mask=mask, other=0.0).to(tl.float32)
        gk, gv, gf, gw, gn, gd, ge, gg = _step_back_gated(
            n, d, e, decay, first, k, v, gate, grad_y, gn, gd, ge, GATED
        )  # fmt: skip
        tl.store(grad_k_p, gk.to(grad_k_p.dtype.element_ty), mask=mask)
        tl.store(grad_v_p, gv.to(grad_v_p.dtype.element_ty), mask=mask)
        if GATED:
            tl.store(grad_gate_p, gg.to(grad_gate_p.dtype.element_ty), mask=mask)
        total_decay += gw
        total_first += gf

    back = CHUNK * channels
    ahead = c < tl.minimum(blocks, 1) * channels
    next_state = load_tokens(saved_p - 3 * channels, channels, ahead, 3)
    next_k, next_v = load_tokens(k_p - back, channels, ahead, CHUNK), load_tokens(v_p - back, channels, ahead, CHUNK)
    next_gate = load_tokens(gate_p - back, channels, ahead, CHUNK if GATED else 0)
    next_grad = load_tokens(grad_y_p - back, channels, ahead, CHUNK)
    for block in range(blocks):
        ks, vs, gates, grads = next_k, next_v, next_gate, next_grad
        n, d, e = next_state
        saved_p -= 3 * channels
        k_p, v_p, gate_p, grad_y_p = k_p - back, v_p - back, gate_p - back, grad_y_p - back
        grad_k_p, grad_v_p, grad_gate_p = grad_k_p - back, grad_v_p - back, grad_gate_p - back
        ahead = c < tl.minimum(blocks - 1 - block, 1) * channels
        next_state = load_tokens(saved_p - 3 * channels, channels, ahead, 3)
        next_k = load_tokens(k_p - back, channels, ahead, CHUNK)
        next_v = load_tokens(v_p - back, channels, ahead, CHUNK)
        next_gate = load_tokens(gate_p - back, channels, ahead, CHUNK if GATED else 0)
        next_grad = load_tokens(grad_y_p - back, channels, ahead, CHUNK)
        ns, ds, es = (), (), ()
        for i in tl.static_range(CHUNK):
            ns, ds, es = ns + (n,), ds + (d,), es + (e,)
            n, d, e = _update(n, d, e, decay, ks[i], vs[i])
        block_decay, block_first = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        for i in tl.static_range(CHUNK - 1, -1, -1):
            gk, gv, gf, gw, gn, gd, ge, gg = _step_back_gated(
                ns[i], ds[i], es[i], decay, first, ks[i], vs[i], gates[i] if GATED else ks[i], grads[i], gn, gd, ge, GATED
            )  # fmt: skip
            tl.store(grad_k_p + i * channels, gk.to(grad_k_p.dtype.element_ty), mask=mask)
            tl.store(grad_v_p + i * channels, gv.to(grad_v_p.dtype.element_ty), mask=mask)
            if GATED:
                tl.store(grad_gate_p + i * channels, gg.to(grad_gate_p.dtype.element_ty), mask=mask)
            block_decay += gw
            block_first += gf
        total_decay += block_decay
        total_first += block_first
    n, d, e = load_tokens(state_p + states, channels, mask, 3)
    _put_state(grad_state_p + states, channels, mask, gn, gd, ge + gn * n + gd * d)
    tl.store(grad_decay_p + batch * channels + c, total_decay, mask=mask)
    tl.store(grad_first_p + batch * channels + c, total_first, mask=mask)


def _empty(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, state: Tensor, dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return k.new_empty(k.shape, dtype=dtype), state.new_empty(state.shape), saved_states(k, 3, save=save)


def _run(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, state: Tensor, dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    decay, first, k, v, state = (t.contiguous() for t in (decay, first, k, v, state))
    gate = gate.contiguous() if gate is not None else None
    y, state_out, saved = _empty(decay, first, k, v, gate, state, dtype, save)
    launch(
        _forward_kernel, scan_grid(k), k,
        decay, first, k, v, k if gate is None else gate, state, y, state_out, saved, k.shape[1], k.shape[2],
        GATED=gate is not None, SAVE=save, CHUNK=CHUNK, BLOCK=BLOCK, num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip
    return y, state_out, saved


def _backward_empty(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, state: Tensor, state_out: Tensor,
    saved: Tensor, grad_y: Tensor, grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    like = k if gate is None else gate
    grad_gate = like.new_empty(0 if gate is None else gate.shape)
    return (
        decay.new_empty(decay.shape), first.new_empty(first.shape), k.new_empty(k.shape), v.new_empty(v.shape),
        grad_gate, state.new_empty(state.shape),
    )  # fmt: skip


def _backward(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, state: Tensor, state_out: Tensor,
    saved: Tensor, grad_y: Tensor, grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    decay, first, k, v, state, grad_y, grad_out = (
        t.contiguous() for t in (decay, first, k, v, state, grad_y, grad_out)
    )
    gate = gate.contiguous() if gate is not None else None
    *_, grad_k, grad_v, grad_gate, grad_state = _backward_empty(
        decay, first, k, v, gate, state, state_out, saved, grad_y, grad_out
    )
    sums = k.new_empty(2, k.shape[0], k.shape[2], dtype=torch.float32)
    launch(
        _backward_kernel, scan_grid(k), k,
        decay, first, k, v, k if gate is None else gate, state, state_out, saved, grad_y, grad_out,
        sums[0], sums[1], grad_k, grad_v, grad_gate, grad_state, k.shape[1], k.shape[2],
        GATED=gate is not None, CHUNK=CHUNK, BLOCK=BLOCK, num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip
    grad_decay, grad_first = sums.sum(1).unbind(0)
    return grad_decay.clone(), grad_first.clone(), grad_k, grad_v, grad_gate, grad_state


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # the saved states need none
    ctx.save_for_backward(*inputs[:6], *output[1:])


def _gradients(ctx: Any, grad_y: Tensor | None, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *inputs, state_out, saved = ctx.saved_tensors
    _, _, k, _, gate, state = inputs
    grad_y, grad_out = given(grad_y, k), given(grad_out, state)
    *grads, grad_gate, grad_state = _backward_op(*inputs, state_out, saved, grad_y, grad_out)
    return *grads, None if gate is None else grad_gate, grad_state, None, None


_op = register("wkv", _run, _empty)
_backward_op = register("wkv_backward", _backward, _backward_empty)
_op.register_autograd(_gradients, setup_context=_save)


def wkv(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, state: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See `ops.wkv` and, with a gate [B, T, C], `ops.gated_wkv`; y comes in `dtype`."""
    direct = is_direct(decay, first, k, v, gate, state)
    y, state, _ = (_run if direct else _op)(decay, first, k, v, gate, state, dtype, not direct)
    return y, state

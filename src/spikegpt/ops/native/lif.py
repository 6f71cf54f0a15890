"""Leaky integrate-and-fire, with or without a residual added: `lif.cpp` as a torch operator."""

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


def lif(x: Tensor, membrane: Tensor, tau: float, threshold: float, alpha: float) -> Pair:
    """See `ops.lif`; `membrane` is given."""
    return lif_add(x, None, membrane, tau, threshold, alpha)


def lif_add(x: Tensor, residual: Tensor | None, membrane: Tensor, tau: float, threshold: float, alpha: float) -> Pair:
    """See `ops.lif_add`; `membrane` is given, the residual may be missing."""
    if residual is not None and residual.dtype != torch.float32:  # the kernel adds in float32 only
        spikes, membrane = lif(x, membrane, tau, threshold, alpha)
        return residual + spikes.to(residual.dtype), membrane
    inputs = readable(x), membrane.float()
    run = _lif if is_direct(*inputs, *(() if residual is None else (residual,))) else _lif_op
    spikes, membrane, _ = run(*inputs, tau, threshold, alpha, residual)
    return spikes, membrane


def _lif_empty(
    x: Tensor, membrane: Tensor, tau: float, threshold: float, alpha: float, residual: Tensor | None = None
) -> Triple:
    return scan_outputs(x)


def _lif(
    x: Tensor, membrane: Tensor, tau: float, threshold: float, alpha: float, residual: Tensor | None = None
) -> Triple:
    x, membrane = packed(x, membrane)
    residual = None if residual is None else residual.contiguous()
    outputs = scan_outputs(x)
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

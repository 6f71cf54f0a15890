"""Cross entropy in one pass over the logits, and its gradient in another: see `ops.cross_entropy`."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import IGNORED, counted
from .launch import exp as _exp
from .launch import launch, register

WIDTH = 4096
"""Most logits a program holds at a time."""

Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@triton.jit
def _forward_kernel(
    logits_p, targets_p, loss_p, log_total_p, largest_p, where_p, vocabulary, IGNORED: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits_p += row * vocabulary
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    where = tl.zeros((), tl.int64)
    for start in range(0, vocabulary, WIDTH):
        at = start + tl.arange(0, WIDTH)
        x = tl.load(logits_p + at, mask=at < vocabulary, other=float("-inf")).to(tl.float32)
        here = tl.max(x, 0)
        where = tl.where(here > largest, (start + tl.argmax(x, 0)).to(tl.int64), where)
        top = tl.maximum(largest, here)
        total = total * _exp(largest - top) + tl.sum(_exp(x - top), 0)
        largest = top
    log_total = largest + tl.log(total)
    target = tl.load(targets_p + row)
    known = (target >= 0) & (target < vocabulary)
    wanted = tl.load(logits_p + tl.where(known, target, 0), mask=known, other=float("nan")).to(tl.float32)
    tl.store(loss_p + row, tl.where(target == IGNORED, 0.0, log_total - wanted))
    tl.store(log_total_p + row, log_total)
    tl.store(largest_p + row, largest)
    tl.store(where_p + row, where)


@triton.jit
def _backward_kernel(
    logits_p, targets_p, log_total_p, largest_p, where_p, counted_p, grad_p, grad_logits_p, penalty, vocabulary,
    IGNORED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = at < vocabulary
    target = tl.load(targets_p + row)
    scale = tl.load(grad_p).to(tl.float32) / tl.load(counted_p)
    x = tl.load(logits_p + row * vocabulary + at, mask=mask, other=0.0).to(tl.float32)
    grad = _exp(x - tl.load(log_total_p + row))
    grad -= tl.where(at == target, 1.0, 0.0)
    grad += tl.where(at == tl.load(where_p + row), penalty * tl.load(largest_p + row), 0.0)
    out_p = grad_logits_p + row * vocabulary + at
    tl.store(out_p, tl.where(target == IGNORED, 0.0, grad * scale).to(grad_logits_p.dtype.element_ty), mask=mask)


def _width(logits: Tensor) -> int:
    return min(WIDTH, triton.next_power_of_2(logits.shape[-1]))


def _empty(logits: Tensor, targets: Tensor, penalty: float) -> Five:
    loss = logits.new_empty((), dtype=torch.float32)
    row = logits.new_empty(targets.shape, dtype=torch.float32)
    return loss, row, torch.empty_like(row), torch.empty_like(targets), torch.empty_like(loss)


def _run(logits: Tensor, targets: Tensor, penalty: float) -> Five:
    logits, targets = logits.contiguous(), targets.contiguous()
    _, log_total, largest, where, _ = _empty(logits, targets, penalty)
    losses = torch.empty_like(log_total)
    launch(
        _forward_kernel, (targets.numel(),), logits,
        logits, targets, losses, log_total, largest, where, logits.shape[-1],
        IGNORED=IGNORED, WIDTH=_width(logits), num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    number = counted(targets).float()
    return losses.sum() / number, log_total, largest, where, number


def _backward_empty(
    logits: Tensor, targets: Tensor, log_total: Tensor, largest: Tensor, where: Tensor, number: Tensor, grad: Tensor,
    penalty: float,
) -> Tensor:  # fmt: skip
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _backward(
    logits: Tensor, targets: Tensor, log_total: Tensor, largest: Tensor, where: Tensor, number: Tensor, grad: Tensor,
    penalty: float,
) -> Tensor:  # fmt: skip
    logits, targets = logits.contiguous(), targets.contiguous()
    grad_logits = torch.empty_like(logits)
    launch(
        _backward_kernel, (targets.numel(), triton.cdiv(logits.shape[-1], _width(logits))), logits,
        logits, targets, log_total, largest, where, number, grad, grad_logits, penalty, logits.shape[-1],
        IGNORED=IGNORED, WIDTH=_width(logits), num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    return grad_logits


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, ctx.penalty = inputs
    ctx.mark_non_differentiable(*output[3:])
    ctx.save_for_backward(logits, targets, *output[1:])


def _gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None, None]:
    return _backward_op(*ctx.saved_tensors, grad, ctx.penalty), None, None


_op = register("cross_entropy", _run, _empty)
_backward_op = register("cross_entropy_backward", _backward, _backward_empty)
_op.register_autograd(_gradients, setup_context=_save)


def cross_entropy(logits: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """See `ops.cross_entropy`."""
    return _op(logits, targets, penalty)[0]

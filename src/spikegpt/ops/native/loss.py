"""Cross entropy and divergence: `loss.cpp` as torch operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import counted
from .library import _native, at, is_direct, packed, readable, register, typed


def cross_entropy(logits: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """See `ops.cross_entropy`."""
    logits = readable(logits)
    run = _cross_entropy if is_direct(logits) else _cross_entropy_op
    return run(logits, targets, penalty)[0].sum() / counted(targets)


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """See `ops.divergence`."""
    logits, teacher = readable(logits), readable(teacher)
    run = _divergence if is_direct(logits) else _divergence_op
    return run(logits, teacher)[0].mean()


def _cross_entropy_empty(logits: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    losses, log_totals, largest = (logits.new_empty(targets.shape, dtype=torch.float32) for _ in range(3))
    return losses, log_totals, largest, targets.new_empty(targets.shape)


def _cross_entropy(logits: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits, targets = packed(logits, targets)
    outputs = _cross_entropy_empty(logits, targets, penalty)
    _native.cross_entropy_forward(
        torch.get_num_threads(), targets.numel(), logits.shape[-1], *typed(logits), *at(targets, *outputs)
    )
    return outputs


def _cross_entropy_backward_empty(
    logits: Tensor, targets: Tensor, log_totals: Tensor, largest: Tensor, where: Tensor, grad: Tensor, penalty: float
) -> Tensor:
    return logits.new_empty(logits.shape)


def _cross_entropy_backward(
    logits: Tensor, targets: Tensor, log_totals: Tensor, largest: Tensor, where: Tensor, grad: Tensor, penalty: float
) -> Tensor:
    logits, *rows = packed(logits, targets, log_totals, largest, where, grad)
    grad_logits = torch.empty_like(logits)
    _native.cross_entropy_backward(
        torch.get_num_threads(), rows[0].numel(), logits.shape[-1], penalty, *typed(logits), *at(*rows),
        *typed(grad_logits),
    )  # fmt: skip
    return grad_logits


def _save_cross_entropy(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, ctx.penalty = inputs
    ctx.save_for_backward(logits, targets, *output[1:])


def _cross_entropy_gradients(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
    return _cross_entropy_backward_op(*ctx.saved_tensors, grad, ctx.penalty), None, None


_cross_entropy_op = register("cross_entropy", _cross_entropy, _cross_entropy_empty)
_cross_entropy_backward_op = register("cross_entropy_backward", _cross_entropy_backward, _cross_entropy_backward_empty)
_cross_entropy_op.register_autograd(_cross_entropy_gradients, setup_context=_save_cross_entropy)


def _divergence_empty(logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    divergences, log_totals, teacher_log_totals = (
        logits.new_empty(logits.shape[:-1], dtype=torch.float32) for _ in range(3)
    )
    return divergences, log_totals, teacher_log_totals


def _divergence(logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits, teacher = packed(logits, teacher)
    outputs = _divergence_empty(logits, teacher)
    rows, classes = outputs[0].numel(), logits.shape[-1]
    _native.divergence_forward(torch.get_num_threads(), rows, classes, *typed(logits, teacher), *at(*outputs))
    return outputs


def _divergence_backward_empty(
    logits: Tensor, teacher: Tensor, log_totals: Tensor, teacher_log_totals: Tensor, grad: Tensor
) -> Tensor:
    return logits.new_empty(logits.shape)


def _divergence_backward(
    logits: Tensor, teacher: Tensor, log_totals: Tensor, teacher_log_totals: Tensor, grad: Tensor
) -> Tensor:
    logits, teacher, *rows = packed(logits, teacher, log_totals, teacher_log_totals, grad)
    grad_logits = torch.empty_like(logits)
    _native.divergence_backward(
        torch.get_num_threads(), rows[0].numel(), logits.shape[-1], *typed(logits, teacher), *at(*rows),
        *typed(grad_logits),
    )  # fmt: skip
    return grad_logits


def _save_divergence(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])


def _divergence_gradients(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None]:
    return _divergence_backward_op(*ctx.saved_tensors, grad), None


_divergence_op = register("divergence", _divergence, _divergence_empty)
_divergence_backward_op = register("divergence_backward", _divergence_backward, _divergence_backward_empty)
_divergence_op.register_autograd(_divergence_gradients, setup_context=_save_divergence)

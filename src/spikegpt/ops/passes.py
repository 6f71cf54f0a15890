"""The C++ kernels for what stands around the operators along time: one pass over memory each, forward and backward.

As torch custom operators, like those of `native`: for each `_<name>_empty` makes the outputs, `_<name>` fills them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .library import CHUNK, _native, at, empty, is_direct, packed, readable, register, threads_and_shape, typed

Pair = tuple[Tensor, Tensor]


def shift_mix(x: Tensor, last: Tensor, mixes: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """See `ops.shift_mix`."""
    inputs = x.float(), last.float()
    rows = [mix.float() for mix in mixes]
    run = _shift_mix if is_direct(*inputs, *rows) else _shift_mix_op
    return tuple(y.to(dtype) for y in run(*inputs, rows, dtype == torch.bfloat16))


def relu_squared(x: Tensor, dtype: torch.dtype) -> Tensor:
    """See `ops.relu_squared`."""
    x = readable(x)
    return (_relu_squared if is_direct(x) else _relu_squared_op)(x, dtype == torch.bfloat16).to(dtype)


def gate(opening: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """See `ops.gate`."""
    opening, x = readable(opening), readable(x)
    return (_gate if is_direct(opening, x) else _gate_op)(opening, x, dtype == torch.bfloat16).to(dtype)


def dropout(x: Tensor, p: float) -> Tensor:
    """See `ops.dropout`."""
    seed = torch.randint(2**63 - 1, (1,))
    given = readable(x)
    return (_dropout if is_direct(given) else _dropout_op)(given, seed, p).to(x.dtype)


def cross_entropy(logits: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """See `ops.cross_entropy`."""
    logits = readable(logits)
    run = _cross_entropy if is_direct(logits) else _cross_entropy_op
    return run(logits, targets, penalty)[0].mean()


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """See `ops.divergence`."""
    logits, teacher = readable(logits), readable(teacher)
    run = _divergence if is_direct(logits) else _divergence_op
    return run(logits, teacher)[0].mean()


def tally(events: Tensor, levels: int) -> Tensor:
    """See `ops.tally`."""
    rows = readable(events.detach()).flatten(0, -2)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    counts = rows.new_empty(rows.shape[0], 2, dtype=torch.int32)
    if counts.numel():
        _native.tally(torch.get_num_threads(), *rows.shape, rows.stride(0), levels, *typed(rows), counts.data_ptr())
    return counts.sum(0)


def _flat(x: Tensor) -> tuple[int, int]:
    return torch.get_num_threads(), x.numel()


def _shift_mix_empty(x: Tensor, last: Tensor, mixes: list[Tensor], half: bool) -> list[Tensor]:
    return [empty(x, half) for _ in mixes]


def _shift_mix(x: Tensor, last: Tensor, mixes: list[Tensor], half: bool) -> list[Tensor]:
    x, last, *mixes = packed(x, last, *mixes)
    outputs = [empty(x, half) for _ in mixes]
    _native.shift_mix_forward(*threads_and_shape(x), *at(x, last), at(*mixes), typed(*outputs))
    return outputs


def _shift_mix_backward_empty(
    x: Tensor, last: Tensor, mixes: list[Tensor], grads: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(last), x.new_empty(len(mixes), x.shape[2])


def _shift_mix_backward(
    x: Tensor, last: Tensor, mixes: list[Tensor], grads: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    x, last, *others = packed(x, last, *mixes, *grads)
    mixes, grads = others[: len(mixes)], others[len(mixes) :]
    grad_x, grad_last = torch.empty_like(x), torch.empty_like(last)
    batch, time, channels = x.shape
    sums = x.new_empty(batch * -(-time // CHUNK), len(mixes), channels)
    _native.shift_mix_backward(
        *threads_and_shape(x), *at(x, last), at(*mixes), typed(*grads), *at(grad_x, grad_last, sums)
    )
    return grad_x, grad_last, sums.sum(0)


def _save_shift_mix(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, last, mixes, _ = inputs
    ctx.save_for_backward(x, last, *mixes)


def _shift_mix_gradients(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    x, last, *mixes = ctx.saved_tensors
    grad_x, grad_last, sums = _shift_mix_backward_op(x, last, mixes, grads)
    return grad_x, grad_last, [row.view(mix.shape) for row, mix in zip(sums, mixes, strict=True)], None


_shift_mix_op = register("shift_mix", _shift_mix, _shift_mix_empty)
_shift_mix_backward_op = register("shift_mix_backward", _shift_mix_backward, _shift_mix_backward_empty)
_shift_mix_op.register_autograd(_shift_mix_gradients, setup_context=_save_shift_mix)


def _relu_squared_empty(x: Tensor, half: bool) -> Tensor:
    return empty(x, half)


def _relu_squared(x: Tensor, half: bool) -> Tensor:
    x = x.contiguous()
    y = empty(x, half)
    _native.relu_squared_forward(*_flat(x), *typed(x, y))
    return y


def _relu_squared_backward_empty(x: Tensor, grad_y: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _relu_squared_backward(x: Tensor, grad_y: Tensor) -> Tensor:
    x, grad_y = packed(x, grad_y)
    grad_x = torch.empty_like(x)
    _native.relu_squared_backward(*_flat(x), *typed(x, grad_y, grad_x))
    return grad_x


def _save_relu_squared(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _relu_squared_gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
    return _relu_squared_backward_op(*ctx.saved_tensors, grad_y), None


_relu_squared_op = register("relu_squared", _relu_squared, _relu_squared_empty)
_relu_squared_backward_op = register("relu_squared_backward", _relu_squared_backward, _relu_squared_backward_empty)
_relu_squared_op.register_autograd(_relu_squared_gradients, setup_context=_save_relu_squared)


def _gate_empty(opening: Tensor, x: Tensor, half: bool) -> Tensor:
    return empty(x, half)


def _gate(opening: Tensor, x: Tensor, half: bool) -> Tensor:
    opening, x = packed(opening, x)
    y = empty(x, half)
    _native.gate_forward(*_flat(x), *typed(opening, x, y))
    return y


def _gate_backward_empty(opening: Tensor, x: Tensor, grad_y: Tensor) -> Pair:
    return opening.new_empty(opening.shape), x.new_empty(x.shape)


def _gate_backward(opening: Tensor, x: Tensor, grad_y: Tensor) -> Pair:
    opening, x, grad_y = packed(opening, x, grad_y)
    grad_opening, grad_x = torch.empty_like(opening), torch.empty_like(x)
    _native.gate_backward(*_flat(x), *typed(opening, x, grad_y, grad_opening, grad_x))
    return grad_opening, grad_x


def _save_gate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gate_gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    return *_gate_backward_op(*ctx.saved_tensors, grad_y), None


_gate_op = register("gate", _gate, _gate_empty)
_gate_backward_op = register("gate_backward", _gate_backward, _gate_backward_empty)
_gate_op.register_autograd(_gate_gradients, setup_context=_save_gate)


def _dropout_empty(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return x.new_empty(x.shape)


def _dropout(x: Tensor, seed: Tensor, p: float) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    _native.dropout(*_flat(x), p, seed.data_ptr(), *typed(x, y))
    return y


def _save_dropout(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.p = inputs
    ctx.save_for_backward(seed)


def _dropout_gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
    return _dropout_op(grad_y, *ctx.saved_tensors, ctx.p), None, None


_dropout_op = register("dropout", _dropout, _dropout_empty)
_dropout_op.register_autograd(_dropout_gradients, setup_context=_save_dropout)


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

"""relu^2, gate and dropout: `pointwise.cpp` as torch operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .library import Pair, _native, empty, is_direct, packed, readable, register, typed


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


def _flat(x: Tensor) -> tuple[int, int]:
    return torch.get_num_threads(), x.numel()


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

"""Token shift and mixes: `mix.cpp` as a torch operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .library import CHUNK, _native, at, empty, is_direct, packed, register, threads_and_shape, typed


def shift_mix(x: Tensor, last: Tensor, mixes: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """See `ops.shift_mix`."""
    inputs = x.float(), last.float()
    rows = [mix.float() for mix in mixes]
    run = _shift_mix if is_direct(*inputs, *rows) else _shift_mix_op
    return tuple(y.to(dtype) for y in run(*inputs, rows, dtype == torch.bfloat16))


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

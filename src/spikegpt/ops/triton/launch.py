"""What every Triton operator shares: registration with torch, the shape of a scan, blocks of tokens kept in registers.

A scan gives each program one sequence and BLOCK channels, and walks it through time. Tokens come in blocks of CHUNK:
the next block is loaded while this one is computed, so that memory is busy although time is sequential. The tokens left
over at the end are processed one by one. The state before each block and before each left-over token is saved for the
backward pass, which recomputes a block from it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

CHUNK = 16
"""Tokens between two saved states, and tokens loaded ahead."""
BLOCK = 32
"""Channels a program of a scan walks: one per thread of its only warp, since B C / 32 warps must fill the GPU."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, on tensors of the CPU; Triton reads it when it is imported."""


if INTERPRETED:

    def exp(x: Any) -> Any:
        """e^x."""
        return tl.exp(x)

    def divide(a: Any, b: Any) -> Any:
        """a / b."""
        return a / b

else:

    @triton.jit
    def exp(x):
        """e^x, 0 where it is below 1e-38: a third of the instructions of `tl.exp`."""
        return libdevice.fast_expf(x)

    @triton.jit
    def divide(a, b):
        """a / b for |b| below 2^126: a third of the instructions of `/`."""
        return libdevice.fast_dividef(a, b)


def part(function: Callable[..., Any]) -> Any:
    """A function that kernels call. The interpreter takes milliseconds to enter a `triton.jit` one, so there it is plain."""
    return function if INTERPRETED else triton.jit(function)


def register(name: str, run: Callable[..., Any], empty: Callable[..., Any]) -> Any:
    """`run` as the torch operator `spikegpt::triton_NAME`, with `empty` for its outputs' shapes."""
    operator = torch.library.custom_op(f"spikegpt::triton_{name}", run, mutates_args=())
    operator.register_fake(empty)
    return operator


def is_direct(*tensors: Tensor | None) -> bool:
    """Whether the kernel can be called without torch's dispatch: no gradient is wanted and nothing is compiled."""
    given = [t for t in tensors if t is not None]
    return (
        not torch.compiler.is_compiling()
        and all(type(t) in (Tensor, torch.nn.Parameter) for t in given)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in given))
    )


def launch(kernel: Any, grid: tuple[int, ...], like: Tensor, *arguments: Any, **settings: Any) -> None:
    """Run a kernel on the device of `like`; nothing where the grid is empty."""
    if 0 in grid:
        return
    there = torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext()
    with there:
        kernel[grid](*arguments, **settings)


def scan_grid(x: Tensor) -> tuple[int, int]:
    """Programs of a scan of x [B, T, C]: blocks of channels, sequences."""
    return triton.cdiv(x.shape[2], BLOCK), x.shape[0]


def saved_states(x: Tensor, *state: int, save: bool) -> Tensor:
    """New tensor [B, N, *state, C] for the states before each block and each left-over token of x [B, T, C]."""
    batch, time, channels = x.shape
    count = time // CHUNK + time % CHUNK if save else 0
    return x.new_empty(batch, count, *state, channels, dtype=torch.float32)


def given(grad: Tensor | None, like: Tensor) -> Tensor:
    """The gradient of an output shaped as `like`, zeros where that output was not used."""
    return torch.zeros_like(like) if grad is None else grad


@part
def sigmoid(x):
    """1 / (1 + e^-x), of an exponential that cannot overflow."""
    other = exp(-tl.abs(x))
    return divide(tl.where(x < 0, other, 1.0), 1.0 + other)


@part
def load_tokens(pointer, channels, mask, count: tl.constexpr):
    """`count` tokens, `channels` apart, each [BLOCK] in float32."""
    values = ()
    for i in tl.static_range(count):
        values = values + (tl.load(pointer + i * channels, mask=mask, other=0.0).to(tl.float32),)
    return values

"""The C++ library, and how its kernels become torch operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_NARROW = (torch.float32, torch.bfloat16, torch.float16)

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]

try:
    import spikegpt.ops._native as _native  # pyright: ignore[reportMissingImports] (built on installation)
except ImportError as error:
    _native: Any = None
    MISSING: str | None = f"the C++ library cannot be loaded ({error}); install spikegpt where there is a C++ compiler"
    CHUNK = 32
else:
    MISSING = None
    CHUNK = _native.CHUNK


def unfit(tensors: Sequence[Tensor]) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    for tensor in tensors:
        if not tensor.is_cpu:
            return f"they run on the CPU, and a tensor is on {tensor.device}"
        if tensor.dtype not in _NARROW:
            return f"they compute in float32, and a tensor is {tensor.dtype}"
    return None


def is_direct(*tensors: Tensor) -> bool:
    """Whether kernels may be called without a dispatch: no gradient wanted, nothing being compiled."""
    return (
        not torch.compiler.is_compiling()
        and all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    )


def register(name: str, run: Callable[..., Any], empty: Callable[..., Any]) -> Any:
    """`run` as a torch operator; `empty` makes the outputs that a compiler traces."""
    operator = torch.library.custom_op(f"spikegpt::{name}", run, mutates_args=(), device_types="cpu")
    operator.register_fake(empty)
    return operator


def packed(*tensors: Tensor) -> list[Tensor]:
    """The tensors, contiguous."""
    return [t.contiguous() for t in tensors]


def readable(tensor: Tensor) -> Tensor:
    """In a type that kernels read where it may be half: float32 or bfloat16."""
    return tensor if tensor.dtype in (torch.float32, torch.bfloat16) else tensor.float()


def at(*tensors: Tensor) -> list[int]:
    """Addresses of float32 tensors."""
    return [t.data_ptr() for t in tensors]


def typed(*tensors: Tensor) -> list[tuple[int, bool]]:
    """Addresses of tensors that may be bfloat16, and whether they are."""
    return [(t.data_ptr(), t.dtype == torch.bfloat16) for t in tensors]


def empty(like: Tensor, half: bool) -> Tensor:
    """New tensor of the same shape in bfloat16 or float32."""
    return like.new_empty(like.shape, dtype=torch.bfloat16 if half else torch.float32)


def threads_and_shape(x: Tensor) -> tuple[int, int, int, int]:
    """Number of threads; B, T, C."""
    batch, time, channels = x.shape
    return torch.get_num_threads(), batch, time, channels


def scan_outputs(x: Tensor, *state: int, half: bool = False) -> Triple:
    """New tensors for the outputs of a scan of x: output [B, T, C], state [B, *state, C], checkpoints [B, N, *state, C]."""
    batch, time, channels = x.shape
    saved = max(time - 1, 0) // CHUNK
    new, wide = x.new_empty, torch.float32
    return empty(x, half), new(batch, *state, channels, dtype=wide), new(batch, saved, *state, channels, dtype=wide)

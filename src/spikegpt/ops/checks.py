"""Checks of the operators' arguments, the same on every backend. Shapes: B batch, T time in tokens, C channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UserError

IGNORED = -100
"""Target of a position that does not count, as in `torch.nn.functional.cross_entropy`."""


def dimensions(tensor: Tensor) -> tuple[int, int, int]:
    """B, T, C of a tensor that must have these dimensions."""
    if tensor.dim() != 3:
        raise ValueError(f"expected [B, T, C], got shape {tuple(tensor.shape)}")
    batch, time, channels = tensor.shape
    return batch, time, channels


def expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """ValueError unless the tensor has this shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")


def expect_between(name: str, value: float, low: float, high: float) -> None:
    """ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be {low} to {high}")


def expect_mixes(mixes: Sequence[Tensor], channels: int) -> None:
    """ValueError unless these are one to three mixes, [C] or [1, 1, C]."""
    if not 1 <= len(mixes) <= 3:
        raise ValueError(f"{len(mixes)} mixes, expected 1 to 3")
    for mix in mixes:
        if mix.numel() != channels or mix.dim() == 0 or mix.shape[-1] != channels:
            raise ValueError(f"a mix has shape {tuple(mix.shape)}, expected ({channels},) or (1, 1, {channels})")


def expect_classes(logits: Tensor) -> None:
    """ValueError unless logits are [..., V] with V above 0."""
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, expected [..., V] with V above 0")


def expect_targets(targets: Tensor, logits: Tensor) -> None:
    """ValueError unless there is an int64 target for each row of logits [..., V]; UserError on another device."""
    expect_classes(logits)
    expect("targets", targets, tuple(logits.shape[:-1]))
    if targets.dtype != torch.int64:
        raise ValueError(f"targets have type {targets.dtype}, expected torch.int64")
    if targets.device != logits.device:
        raise UserError(f"logits are on {logits.device} and targets on {targets.device}; move them to one device")


def check_targets(targets: Tensor, classes: int) -> None:
    """IndexError for a target that is neither 0 to classes - 1 nor `IGNORED`.

    Only on the CPU: on a GPU it would force a synchronisation.
    """
    if targets.device.type != "cpu":
        return
    outside = ((targets < 0) | (targets >= classes)) & (targets != IGNORED)
    if outside.any():
        raise IndexError(f"target {int(targets[outside][0])} is neither 0 to {classes - 1} nor {IGNORED} (ignored)")


def counted(targets: Tensor) -> Tensor:
    """How many targets count, a scalar."""
    return (targets != IGNORED).sum()


def floating(dtype: torch.dtype | None, otherwise: torch.dtype) -> torch.dtype:
    """The type asked for, which must be a floating-point one; `otherwise` if none was."""
    if dtype is None:
        return otherwise
    if not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype} is not a floating-point type")
    return dtype


def widest(*tensors: Tensor) -> torch.dtype:
    """The type to compute in: float64 if any of these is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def promoted(*tensors: Tensor) -> list[Tensor]:
    """All of them in the type to compute in."""
    dtype = widest(*tensors)
    return [t.to(dtype) for t in tensors]

"""Which backend computes an operator.

"auto" takes the native kernels on the CPU and Triton's on a GPU where they are installed and the tensors are float32 or
narrower, else the reference. An explicit choice is used or refused, never swapped.
"""

from __future__ import annotations

import warnings
from types import ModuleType

import torch
from torch import Tensor

from ..errors import UsageError, UserError
from . import native, reference, triton

BACKENDS = ("auto", "reference", "native", "triton")


def available() -> dict[str, str | bool]:
    """Backends by name: True, or the reason why one cannot be used."""
    no_device = None if triton.INTERPRETED or torch.cuda.is_available() else "there is no GPU"
    return {"reference": True, "native": native.MISSING or True, "triton": triton.MISSING or no_device or True}


def require(backend: str) -> None:
    """A UsageError for a backend that does not exist, a UserError for one that cannot be used here."""
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    missing = {"native": native.MISSING, "triton": triton.MISSING}.get(backend)
    if missing:
        raise UserError(f"the {backend} operators cannot be used: {missing}")


def resolve(backend: str, device: torch.device) -> str:
    """Name of the backend that float32 tensors on `device` get: an explicit choice, or what "auto" stands for there."""
    require(backend)
    if backend != "auto":
        return backend
    kernels = {"cpu": "native", "cuda": "triton"}.get(device.type, "reference")
    return kernels if available()[kernels] is True else "reference"


def choose(backend: str, *tensors: Tensor) -> ModuleType:
    """The module whose functions take these tensors.

    Raises UsageError where there is no such backend, UserError where an explicit one cannot be used or tensors are on
    several devices, ValueError where they are not floating-point.
    """
    if backend in ("auto", "native") and native.MISSING is None and native.unfit(tensors) is None:
        return native  # at once: decoding comes here for every operator of every token
    if backend not in BACKENDS:
        require(backend)
    _check_alike(tensors)
    if backend == "reference":
        return reference
    if backend == "native":
        raise UserError(f"the native operators cannot be used: {native.MISSING or native.unfit(tensors)}")
    if backend == "triton" or tensors[0].device.type == "cuda":
        reason = triton.MISSING or triton.unfit(tensors)
        if reason is None:
            return triton
        if backend == "triton":
            raise UserError(f"the Triton operators cannot be used: {reason}")
        _warn_once(triton.MISSING)
    elif tensors[0].device.type == "cpu":
        _warn_once(native.MISSING)
    return reference


def _check_alike(tensors: tuple[Tensor, ...]) -> None:
    device = tensors[0].device
    for tensor in tensors:
        if tensor.device != device:
            raise UserError(
                f"tensors are on {device} and on {tensor.device}; move model, tokens and state to one device"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"operators take floating-point tensors, and one is {tensor.dtype}")


_warned = False


def _warn_once(missing: str | None) -> None:
    """Warn, once per process, that a fast backend is not installed."""
    global _warned
    if missing and not _warned and not torch.compiler.is_compiling():
        _warned = True
        warnings.warn(f"operators run in plain PyTorch, about 100 times slower: {missing}", stacklevel=4)

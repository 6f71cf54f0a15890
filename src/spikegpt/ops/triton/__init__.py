"""The operators as Triton kernels, for NVIDIA and AMD GPUs (or, to test them, in Triton's interpreter on the CPU).

Inputs may be float32, bfloat16 or float16, and are read as they are; everything is computed in float32. Kernels are
imported only where they could run, since importing Triton takes longer than the rest of the package.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from ..checks import check_targets
from ..reference import divergence, dropout, tally  # no kernels of Triton's: these are PyTorch's own passes

__all__ = [
    "INTERPRETED", "MISSING", "cross_entropy", "divergence", "dropout", "event", "gate", "gated_wkv", "lif", "lif_add",
    "relu_squared", "shift_mix", "tally", "unfit", "wkv",
]  # fmt: skip

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, on tensors of the CPU; Triton reads it when it is imported."""


def _reason() -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed (pip install 'triton>=3.3')"
    if not INTERPRETED and not torch.backends.cuda.is_built() and torch.version.hip is None:
        return "this PyTorch has no GPU, and TRITON_INTERPRET=1 was not set"
    return None


MISSING = _reason()
if MISSING is None:
    try:
        from ..triton import event as _event
        from ..triton import lif as _lif
        from ..triton import loss as _loss
        from ..triton import mix as _mix
        from ..triton import wkv as _wkv
    except ImportError as error:
        MISSING = f"Triton cannot be imported ({error})"


def unfit(tensors: Sequence[Tensor]) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    for tensor in tensors:
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"they compute in float32, and a tensor is {tensor.dtype}"
        if INTERPRETED != (tensor.device.type == "cpu"):
            needs = "the CPU (TRITON_INTERPRET=1 is set)" if INTERPRETED else "a GPU, or TRITON_INTERPRET=1"
            return f"they need {needs}, and a tensor is on {tensor.device}"
    return None


def wkv(decay: Tensor, first: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """See `ops.wkv`; `state` is given."""
    return _wkv.wkv(decay.float(), first.float(), k, v, None, state.float(), torch.float32)


def gated_wkv(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, state: Tensor, gate: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See `ops.gated_wkv`; `state` is given."""
    return _wkv.wkv(decay.float(), first.float(), k, v, gate, state.float(), dtype)


def lif(x: Tensor, membrane: Tensor, tau: float, threshold: float, alpha: float) -> tuple[Tensor, Tensor]:
    """See `ops.lif`; `membrane` is given."""
    return _lif.lif(x, None, membrane.float(), tau, threshold, alpha)


def lif_add(
    x: Tensor, residual: Tensor, membrane: Tensor, tau: float, threshold: float, alpha: float
) -> tuple[Tensor, Tensor]:
    """See `ops.lif_add`; `membrane` is given."""
    return _lif.lif(x, residual, membrane.float(), tau, threshold, alpha)


def event(
    x: Tensor, threshold: Tensor, unit: Tensor, leak: Tensor | None, membrane: Tensor,
    levels: int, smallest: int, signed: bool, hard: bool, window: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `ops.event`; `membrane` is given."""
    leak = None if leak is None else leak.float()
    settings = levels, smallest, signed, hard, window, dtype
    return _event.event(x, threshold.float(), unit.float(), leak, membrane.float(), *settings)


def shift_mix(x: Tensor, last: Tensor, mixes: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """See `ops.shift_mix`."""
    return _mix.shift_mix(x, last.float(), torch.stack([mix.flatten() for mix in mixes]).float(), dtype)


def relu_squared(x: Tensor, dtype: torch.dtype) -> Tensor:
    """See `ops.relu_squared`."""
    return _mix.relu_squared(x, dtype)


def gate(opening: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """See `ops.gate`."""
    return _mix.gate(opening, x, dtype)


def cross_entropy(logits: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """See `ops.cross_entropy`."""
    if INTERPRETED:  # on a GPU the kernel gives NaN instead
        check_targets(targets, logits.shape[-1])
    return _loss.cross_entropy(logits, targets, penalty)

"""The operators as Triton kernels, for NVIDIA and AMD GPUs (or, to test them, in Triton's interpreter on the CPU).

Inputs may be float32, bfloat16 or float16, and are read as they are; everything is computed in float32. Kernels are
imported only where they could run, since importing Triton takes longer than the rest of the package.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

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
        from .event import event as event
        from .lif import lif as lif
        from .mix import relu_squared as relu_squared
        from .mix import shift_mix as shift_mix
        from .wkv import wkv as wkv
    except ImportError as error:
        MISSING = f"Triton cannot be imported ({error})"


def unfit(tensors: tuple[Tensor, ...]) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    for tensor in tensors:
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"they compute in float32, and a tensor is {tensor.dtype}"
        if INTERPRETED != (tensor.device.type == "cpu"):
            needs = "the CPU (TRITON_INTERPRET=1 is set)" if INTERPRETED else "a GPU, or TRITON_INTERPRET=1"
            return f"they need {needs}, and a tensor is on {tensor.device}"
    return None

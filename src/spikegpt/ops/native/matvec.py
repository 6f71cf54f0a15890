"""A few vectors times a matrix: `matvec.cpp`, called directly, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import _native, at, is_direct, packed


def takes_product(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` has a kernel for this product: float32 throughout, no gradient, weights in order, not empty."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and is_direct(x, weight)
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """See `ops.linear`: a matrix product of few rows, bound by the reading of the weights."""
    inputs, outputs = packed(x, weight), x.new_empty(*x.shape[:-1], weight.shape[0])
    _native.matvec(
        torch.get_num_threads(), x.numel() // x.shape[-1], x.shape[-1], weight.shape[0], *at(*inputs, outputs)
    )
    return outputs

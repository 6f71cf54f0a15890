"""Vectors for the C++ self-test: cases of the kernels and of the engines, in one file.

The file: a count, then for each array the length of its name, the name, a letter for its type, the number of dimensions,
the dimensions, and the data, all little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from engine_vectors import engine, fixed_engine, shipped_model
from kernel_vectors import (
    Arrays,
    cross_entropy,
    divergence,
    event,
    lif,
    matvec,
    point_event,
    pointwise,
    shift_mix,
    wkv,
)  # fmt: skip

from spikegpt.engine import base

TYPES = {torch.float32: "f", torch.bfloat16: "h", torch.int64: "i", torch.int32: "w", torch.int8: "b", torch.uint8: "B"}


def write(path: Path, arrays: Arrays) -> None:
    """Write all arrays by name."""
    with path.open("wb") as file:
        file.write(struct.pack("<I", len(arrays)))
        for name, tensor in arrays.items():
            tensor = tensor.detach().float() if tensor.dtype == torch.float64 else tensor.detach()
            label = name.encode()
            file.write(struct.pack("<I", len(label)) + label + TYPES[tensor.dtype].encode())
            file.write(struct.pack(f"<B{tensor.dim()}q", tensor.dim(), *tensor.shape))
            file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")


def make_vectors(shipped: int = 64) -> Arrays:
    """Cases of every operator and of the engines; one of them is the model in the package reading so many tokens."""
    torch.manual_seed(0)

    def fixed() -> Iterator[Arrays]:
        yield from fixed_engine()
        if shipped and base.MISSING is None:
            yield shipped_model(shipped)

    makers = wkv, lif, event, point_event, shift_mix, pointwise, cross_entropy, divergence, matvec, engine, fixed
    return {
        f"{make.__name__}/{number}/{name}": tensor
        for make in makers
        for number, case in enumerate(make())
        for name, tensor in case.items()
    }

"""Tensors that stay in their file until they are needed, and files written one tensor at a time."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError
from ..files import parse_object

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of weights by their name in safetensors."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not read yet."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    raw: np.ndarray | None = None
    """The data as bytes of the mapped file, where they lie there just so."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return self.size * self.dtype.itemsize

    def reshaped(self, shape: tuple[int, ...]) -> Stored:
        """The same data in another shape."""
        return replace(self, shape=shape, read=lambda: self.read().reshape(shape))

    def write(self, file: BinaryIO) -> None:
        """Copy the data to an open file."""
        file.write(self.raw.data if self.raw is not None else as_bytes(self.read()).data)


def mapped(bytes_: np.ndarray, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Stored:
    """A tensor in a file mapped as bytes; reading it copies only where the file does not align it."""
    part = bytes_[offset : offset + math.prod(shape) * dtype.itemsize]

    def read() -> Tensor:
        aligned = part.copy() if offset % dtype.itemsize else part
        return torch.from_numpy(aligned).view(dtype).reshape(shape)

    return Stored(dtype, shape, read, part)


def map_file(path: Path) -> np.ndarray:
    """The bytes of a file, mapped; writing to them changes only the memory."""
    return np.asarray(np.memmap(path, np.uint8, "c"))


def read_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, each with a storage of its own."""
    try:
        with safe_open(path, framework="numpy"):  # the library checks that header and data agree
            pass
        data = map_file(path)
        (length,) = struct.unpack("<Q", data[:8].tobytes())
        entries = _entries(parse_object(data[8 : 8 + length].tobytes()))
        return {name: mapped(data, 8 + length + start, dtype, shape) for name, dtype, shape, start in entries}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file of weights ({error})") from None


def _entries(header: dict[str, Any]) -> Iterator[tuple[str, torch.dtype, tuple[int, ...], int]]:
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name} is of type {entry['dtype']}, which no weights are")
        yield name, DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"][0]


def write_safetensors(path: Path, tensors: Mapping[str, Stored]) -> None:
    """A safetensors file: the header, then the tensors one by one, wider types first, which keeps them aligned."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        stored = tensors[name]
        start, end = end, end + stored.nbytes
        header[name] = {"dtype": _NAMES[stored.dtype], "shape": stored.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            tensors[name].write(file)


def as_bytes(tensor: Tensor) -> np.ndarray:
    """The elements of a tensor, in order, without a copy where they lie so in memory."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()

"""rwkv.cpp's file format, of version 4 models in float32 and float16 (rwkv.cpp, docs/FILE_FORMAT.md).

Little-endian int32: magic, version, V, C, L, type of the matrices; then for each tensor its number of dimensions,
length of its name, type, dimensions (innermost first), name, data. `time_decay` is stored as -exp(time_decay).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import UsageError, UserError
from .stored import Stored, as_bytes, map_file, mapped

SUFFIX = ".bin"
MAGIC = 0x67676D66
_VERSIONS = (100, 101)
_TYPES = {0: torch.float32, 1: torch.float16}
_HEADER = struct.Struct("<6i")
_ENTRY = struct.Struct("<3i")


def is_one(path: Path) -> bool:
    """Whether a file begins as rwkv.cpp's do."""
    with path.open("rb") as file:
        return file.read(4) == struct.pack("<i", MAGIC)


def read(path: Path) -> dict[str, Stored]:
    """The tensors of a file, under the published names and as they are published."""
    data = map_file(path)
    try:
        _, version, vocab_size, channels, layers, _ = _HEADER.unpack_from(data.data)
        if version not in _VERSIONS:
            raise UserError(f"{path} has version {version} of rwkv.cpp's format; only {_VERSIONS} can be read")
        stored = dict(_tensors(path, data))
    except (struct.error, UnicodeDecodeError):
        raise UserError(f"{path} is damaged: its list of tensors cannot be read; get it again") from None
    if "emb.weight" in stored and stored["emb.weight"].shape != (vocab_size, channels):
        found = list(stored["emb.weight"].shape)
        raise UserError(f"{path} contradicts itself: emb.weight is {found}, by its header [{vocab_size}, {channels}]")
    if any(f"blocks.{layers}." in name for name in stored) or f"blocks.{layers - 1}.ln1.weight" not in stored:
        raise UserError(f"{path} contradicts itself: its header says {layers} layers, its tensors do not")
    return stored


def _tensors(path: Path, data: np.ndarray) -> Iterator[tuple[str, Stored]]:
    at = _HEADER.size
    while at < len(data):
        dimensions, name_length, kind = _ENTRY.unpack_from(data.data, at)
        at += _ENTRY.size
        if not (1 <= dimensions <= 3 and 0 < name_length <= 1000):
            raise UserError(f"{path} is damaged at byte {at}: no tensor begins there; get it again")
        sizes = struct.unpack_from(f"<{dimensions}i", data.data, at)
        at += 4 * dimensions
        name = data[at : at + name_length].tobytes().decode("utf-8")
        at += name_length
        if kind not in _TYPES:
            raise UserError(f"{path}: {name} is quantised (type {kind}); take the float32 or float16 file")
        dtype = _TYPES[kind]
        end = at + math.prod(sizes) * dtype.itemsize
        if min(sizes) <= 0 or end > len(data):
            raise UserError(f"{path} is truncated: {name} of {list(sizes)} ends beyond its end; get it again")
        stored = mapped(data, at, dtype, tuple(reversed(sizes)))
        yield name, _logarithm(path, name, stored) if name.endswith(".time_decay") else stored
        at = end


def _logarithm(path: Path, name: str, stored: Stored) -> Stored:
    def read() -> Tensor:
        decay = stored.read().float()
        if not (decay <= 0).all():
            raise UserError(f"{path}: {name} is not below zero everywhere, as a decay in this format is")
        return torch.log(-decay)

    return Stored(torch.float32, stored.shape, read)


def check(source: Path, config: ModelConfig) -> None:
    """Refuse what the format cannot hold."""
    if config.spikes == "before":
        raise UsageError(f"{source} is an event-driven model, which rwkv.cpp cannot express")
    if config.spikes != "none" or config.spike_embedding or config.architecture != "RWKV":
        raise UsageError(f"{source} is not a plain RWKV-4, and rwkv.cpp computes nothing else; export it as .pth")


def write(path: Path, config: ModelConfig, stored: Mapping[str, Stored]) -> None:
    """An rwkv.cpp file: matrices in float16 if they are stored so, everything else in float32."""
    half = stored["head.weight"].dtype == torch.float16
    with path.open("wb") as file:
        sizes = (config.vocab_size, config.n_embd, config.n_layer)
        file.write(_HEADER.pack(MAGIC, _VERSIONS[-1], *sizes, int(half)))
        for name, tensor in stored.items():
            values = tensor.read()
            if ".time_" in name:
                values = values.flatten()
            kind = int(tensor.dtype == torch.float16 and values.ndim == 2)
            values = values.to(_TYPES[kind])
            if name.endswith(".time_decay"):
                values = -torch.exp(values)
            encoded = name.encode()
            file.write(_ENTRY.pack(values.ndim, len(encoded), kind))
            file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)) + encoded)
            file.write(as_bytes(values).data)

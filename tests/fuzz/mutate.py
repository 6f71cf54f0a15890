"""Mutations of files, each decided by a random generator alone: of bytes, of JSON, of safetensors."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

Mutation = Callable[[bytes, random.Random], bytes]

_EXTREMES = (0, 1, -1, 2, 255, 256, 65535, 65536, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 10**9, 10**18)
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e308, -1e308, 1e-320, 10**9, 2**31, 2**53, 2**63 - 1, -(2**63),
    2**64, 10**40, float("nan"), float("inf"), "", "x", "F32", "\0", "\ud800", "猫" * 3, "x" * 5000, "../../etc/passwd",
    [], [[]], [0], [-1], [2**40], {}, {"a": 1}, [1] * 1000,
)  # fmt: skip


def mutate_bytes(data: bytes, random: random.Random) -> bytes:
    """One change of the bytes, at a random place."""
    changed, size = bytearray(data), len(data)
    at = random.randrange(size + 1)
    end = min(size, at + random.choice((1, 2, 4, 8, 64, 1000)))
    match random.randrange(10):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + random.randbytes(random.choice((1, 7, 4096))) + data[at:]
        case 2:
            return data[:at] + data[end:]
        case 3:
            return data[:end] + data[at:]
        case 4:
            changed[at:end] = bytes([random.choice((0, 255, 127, 128))]) * (end - at)
        case 5:
            changed[at:end] = random.randbytes(end - at)
        case 6:
            width = random.choice(("<b", "<h", "<i", "<q"))
            number = struct.pack("<q", random.choice(_EXTREMES[:7]) if width in ("<b", "<h") else _in_range(random))
            changed[at : at + struct.calcsize(width)] = number[: struct.calcsize(width)]
        case 7:
            return random.choice((b"", b"\0", b"{}", b"[]", b"\xff\xfe", random.randbytes(100)))
        case 8:
            return random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b" ", b"\n")) + data
        case _:
            for _ in range(random.choice((1, 1, 3))):
                if size:
                    changed[random.randrange(size)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _in_range(random: random.Random) -> int:
    return random.choice([number for number in _EXTREMES if -(2**63) <= number < 2**63])


def mutate_json(data: bytes, random: random.Random) -> bytes:
    """One change of a value, a key or the text of a JSON file; of its bytes where it is none."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, random)
    match random.randrange(8):
        case 0:
            return mutate_bytes(data, random)
        case 1:
            text = json.dumps(values).encode()
            at = random.randrange(len(text))
            deep = random.choice((b"[", b'{"a":')) * random.choice((20, 500, 100_000))
            return text[:at] + deep + text[at:]
        case 2:
            text = json.dumps(values)
            digits = [i for i, char in enumerate(text) if char.isdigit()] or [0]
            at = random.choice(digits)
            return (text[:at] + "9" * random.choice((5, 30, 5000, 100_000)) + text[at:]).encode()
    return json.dumps(change_value(values, random)).encode()


def change_value(values: Any, random: random.Random) -> Any:
    """JSON values with one of them, anywhere, replaced, left out, renamed or doubled."""
    if not isinstance(values, dict | list) or not values or random.random() < 0.05:
        return random.choice(HOSTILE)
    if isinstance(values, list):
        changed: Any = list(values)
        at = random.randrange(len(values))
    else:
        changed = dict(values)
        at = random.choice(list(values))
    match random.randrange(8):
        case 0:
            del changed[at]
        case 1 if isinstance(changed, dict):
            changed[random.choice(("x", "", at + "s", "__metadata__", "n_layer"))] = changed.pop(at)
        case 2:
            other = random.choice(list(changed)) if isinstance(changed, dict) else random.randrange(len(changed))
            changed[at], changed[other] = changed[other], changed[at]
        case 3 if isinstance(changed[at], int | float):
            changed[at] = random.choice(
                (changed[at] + 1, changed[at] - 1, -changed[at], changed[at] * 1000, str(changed[at]))
            )
        case _:
            changed[at] = change_value(changed[at], random)
    return changed


def mutate_safetensors(data: bytes, random: random.Random) -> bytes:
    """One change of the bytes, of the header's JSON, or of whole tensors with a header and checksum that are right again."""
    if len(data) < 8 or random.randrange(4) == 0:
        return mutate_bytes(data, random)
    (length,) = struct.unpack("<Q", data[:8])
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError:
        return mutate_bytes(data, random)
    body = data[8 + length :]
    if random.randrange(2):
        text = mutate_json(json.dumps(header).encode(), random)
        return struct.pack("<Q", len(text)) + text + body
    try:
        return _pack(*_change_tensors(header, body, random))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):  # the header was mutated before
        return mutate_bytes(data, random)


_TYPES = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "I32": "<i4", "I64": "<i8"}


def _change_tensors(
    header: dict[str, Any], body: bytes, random: random.Random
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    metadata = header.pop("__metadata__", {})
    arrays = {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], _TYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
        for name, entry in header.items()
        if entry["dtype"] in _TYPES
    }
    name = random.choice(sorted(arrays))
    array = arrays[name]
    match random.randrange(9):
        case 0:
            del arrays[name]
        case 1:
            arrays[random.choice(("x", name + ".x", "blocks.9." + name, name.replace("0", "7")))] = arrays.pop(name)
        case 2:
            other = random.choice(sorted(arrays))
            arrays[name], arrays[other] = arrays[other], array
        case 3:
            arrays[name] = array.astype(random.choice(list(_TYPES.values())), casting="unsafe")
        case 4:
            arrays[name] = array[..., : random.choice((0, 1, max(array.shape[-1] - 1, 0)))] if array.ndim else array
        case 5:
            arrays[name] = (
                array.reshape(random.choice(((-1,), (1, -1), (-1, 1), (1, *array.shape)))) if array.size else array
            )
        case 6:
            arrays[name] = np.concatenate([array, array]) if array.ndim else array
        case 7 if array.size:
            extremes = (
                (np.nan, np.inf, -np.inf, 0, -1, 1e38, 127) if array.dtype.kind == "f" else (0, 1, -128 & 127, 15)
            )
            array.reshape(-1)[random.randrange(array.size) :: random.choice((1, 7, array.size))] = random.choice(
                extremes
            )
        case _:
            key = random.choice([*metadata, "x"])
            metadata[key] = random.choice(("", "0", "-1", "3", "9" * 30, "x", "[1]", "{}", "null", "[" * 10_000))
    if "sha256" in metadata and random.randrange(4):
        metadata["sha256"] = packed_digest(arrays)
    return metadata, arrays


def packed_digest(arrays: dict[str, np.ndarray]) -> str:
    """The checksum of a packed model's arrays: SHA-256 over names, types, shapes and data."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _pack(metadata: dict[str, str], arrays: dict[str, np.ndarray]) -> bytes:
    names = {np.dtype(dtype): name for name, dtype in _TYPES.items()}
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    body = b""
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": names[array.dtype],
            "shape": array.shape,
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body

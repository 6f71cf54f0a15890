"""A packed model on disk: `config.json`, `tokenizer.json` and `packed.safetensors`, the matrices in small integers.

The file is plain safetensors: one input's weights lie together (matrices are stored [inputs, outputs]). Its metadata has
the version of the layout and a SHA-256 of the data, so that a damaged file is detected when it is loaded.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .. import checkpoint
from ..errors import UsageError, UserError
from ..files import read_json, write_directory, write_json, write_readable
from ..model.spikegpt import SpikeGPT
from ..task import SETTINGS
from ..tokenizer import Tokenizer, load_tokenizer
from .checks import BITS, check_event_driven
from .fixed import stored
from .fixed.model import FixedModel
from .integers import IntegerModel

PACKED = "packed.safetensors"
VERSION = 1
"""Of the layout of `PACKED`; another one is refused."""

_TYPES = ("F32", "I16", "I8", "U8")
"""Of the arrays, as safetensors calls them."""

PathLike = str | os.PathLike[str]


def pack(
    directory: PathLike, out: PathLike | None = None, *, bits: int = 8, fixed: bool = False, force: bool = False
) -> Path:
    """Write the event-driven model in `directory` with `bits`-bit weights (8 or 4), by default beside it.

    Returns where it is written; by default what is made from a checkpoint lies beside its run. With `fixed` the constants
    of the integers-only engine are written too; then `directory` may be a packed model, whose weights are kept.
    UsageError: the model's neurons do not stand in front of its matrices (the message says what can be done), or the
    directory exists, unless `force`.
    """
    source = checkpoint.resolve(Path(directory))
    check_event_driven(checkpoint.read_config(source))
    if is_packed(source) and not fixed:
        raise UsageError(f"{directory} is packed already; pack the model that it was made from")
    packed, tokenizer = read(source) if is_packed(source) else _round(source, bits)
    suffix = "-fixed" if is_packed(source) else f"-{packed.bits}bit{'-fixed' if fixed else ''}"
    target = checkpoint.beside(Path(directory), suffix) if out is None else Path(out)
    if checkpoint.names_to_replace(target, force) and not is_packed(target):
        raise UsageError(f"{target} holds something else than a packed model; choose another directory")
    if fixed:
        packed = packed.apart()
    write(target, packed, tokenizer, FixedModel.of(packed) if fixed else None, _settings(source))
    return target


def _settings(source: Path) -> dict[str, Any] | None:
    """What a classifier was trained on, which `spikegpt eval` reads; None where the directory does not say so."""
    try:
        return read_json(source / SETTINGS)
    except (OSError, ValueError):
        return None


def _round(directory: Path, bits: int) -> tuple[IntegerModel, Tokenizer]:
    model = checkpoint.load_model(directory)
    assert model.tokenizer is not None
    return IntegerModel.of(model, bits), model.tokenizer


def write(
    directory: Path, packed: IntegerModel, tokenizer: Tokenizer, fixed: FixedModel | None = None,
    settings: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a packed model's directory, all of it or nothing; `settings`: a classifier's `task.SETTINGS`."""

    def fill(inside: Path) -> None:
        tokenizer.save(inside)
        write_json(inside / checkpoint.CONFIG, checkpoint.describe(packed.config))
        if settings is not None:
            write_json(inside / SETTINGS, settings)
        digest = _digest(packed.arrays)
        metadata = {"packed": str(VERSION), "bits": str(packed.bits), "sha256": digest}
        write_readable(inside / PACKED, lambda file: save_file(packed.arrays, file, metadata))
        if fixed is not None:
            stored.write(inside / stored.FIXED, fixed, digest)

    write_directory(directory, fill)


def is_fixed(directory: Path) -> bool:
    """Whether `directory` holds a packed model with the constants of the integers-only engine."""
    return is_packed(directory) and (directory / stored.FIXED).is_file()


def read_fixed(directory: Path) -> tuple[FixedModel, Tokenizer]:
    """Read any event-driven model's directory as integers only; what is not stored in it is made in memory."""
    directory = checkpoint.resolve(directory)
    if not is_packed(directory):
        check_event_driven(checkpoint.read_config(directory))
        packed, tokenizer = _round(directory, 8)
        return FixedModel.of(packed), tokenizer
    packed, tokenizer = read(directory)
    if not is_fixed(directory):
        return FixedModel.of(packed), tokenizer
    return stored.read(directory / stored.FIXED, packed, _digest(packed.arrays)), tokenizer


def is_packed(directory: Path) -> bool:
    """Whether `directory` holds a packed model."""
    return (directory / PACKED).is_file()


def read(directory: Path) -> tuple[IntegerModel, Tokenizer]:
    """Read a packed model's directory; a UserError says in one line what is wrong with it."""
    config = checkpoint.read_config(directory)
    tokenizer = load_tokenizer(directory)
    path = directory / PACKED
    if not path.is_file():
        raise UserError(f"{directory} is not a packed model: it has no {PACKED}; make one with `spikegpt pack`")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("packed") != str(VERSION):
                found = metadata.get("packed", "none")
                raise UserError(
                    f"{path} has layout version {found}, this spikegpt reads {VERSION}: pack the model again"
                )
            arrays = {name: _array(path, file, name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not a packed model ({error}); get it or pack it again") from None
    if metadata.get("sha256") != _digest(arrays):
        raise UserError(f"{path} is damaged: its checksum does not match; get it or pack it again")
    try:
        return IntegerModel(config, _bits(metadata), arrays), tokenizer
    except UserError as error:
        raise UserError(f"{path} does not fit its config: {error}; get it or pack it again") from None


def _array(path: Path, file: Any, name: str) -> np.ndarray:
    kind = file.get_slice(name).get_dtype()
    if kind not in _TYPES:
        raise UserError(f"{path}: array {name} has type {kind}, none of {', '.join(_TYPES)}; get it or pack it again")
    return file.get_tensor(name)


def _bits(metadata: dict[str, str]) -> int:
    """Width of the weights; 0, which is refused, if the metadata has none."""
    return next((bits for bits in BITS if metadata.get("bits") == str(bits)), 0)


def unpack(directory: Path) -> SpikeGPT:
    """The float model with a packed model's weights, its tokenizer in `model.tokenizer`."""
    packed, tokenizer = read(directory)
    model = packed.dequantise()
    model.tokenizer = tokenizer
    return model


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes and data, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()

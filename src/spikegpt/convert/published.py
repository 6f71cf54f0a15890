"""The reference's checkpoints: a state dict in PyTorch's file format (`.pth`), of SpikeGPT or RWKV-4."""

from __future__ import annotations

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import UsageError, UserError
from .stored import Stored

SUFFIX = ".pth"
_DEEPEST_TUPLE = 16  # in a state dict they nest 4 deep


def read(path: Path) -> dict[str, Stored]:
    """The tensors of a state dict; the file is mapped, and nothing that it asks for is executed."""
    content = _load(path)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no state dict but {type(content).__name__}; save model.state_dict() alone")
    for name, value in content.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: {name!r} is no name of a tensor; save model.state_dict() alone")
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name!r} is {type(value).__name__}, not a tensor; save model.state_dict() alone")
        _check_data(path, name, value)
    return {name: Stored(t.dtype, tuple(t.shape), lambda t=t: t.detach()) for name, t in content.items()}


def _check_structure(path: Path) -> None:
    """ValueError where reading the file would take far more time or memory than it has bytes."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(4):  # magic number, version, system, and the state dict
                if file.peek(1):
                    _check_pickle(file)
        return
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed")
        for entry in archive.infolist():
            if entry.filename.endswith("/data.pkl"):
                with archive.open(entry) as file:
                    _check_pickle(file)


def _check_pickle(file: IO[bytes]) -> None:
    """Follow how deep tuples of a pickle nest: hashing one that holds the next twice takes time exponential in that."""
    stack: list[int | None] = []  # depth of each value; None is a mark
    memo: dict[Any, int] = {}
    for operation, argument, _ in pickletools.genops(file):
        if operation.name == "MARK":
            stack.append(None)
        elif operation.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1] or 0
        elif operation.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif operation.name == "DUP":
            stack.append(stack[-1])
        else:
            depth = _popped(stack, operation) + operation.name.startswith("TUPLE")
            if depth > _DEEPEST_TUPLE:
                raise ValueError(f"its tuples are nested deeper than {_DEEPEST_TUPLE}")
            stack += [depth] * len(operation.stack_after)


def _popped(stack: list[int | None], operation: pickletools.OpcodeInfo) -> int:
    """Take what an operation takes from the stack, and return the depth of the deepest value."""
    values = [0]
    for wanted in reversed(operation.stack_before):
        if wanted is pickletools.stackslice:
            while (value := stack.pop()) is not None:
                values.append(value)
        elif wanted is not pickletools.markobject:
            values.append(stack.pop() or 0)
    return max(values)


def _check_data(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse tensors without numbers of their own in the file, one for each element."""
    layout = str(tensor.layout).removeprefix("torch.")
    if layout != "strided" or tensor.is_nested or tensor.is_quantized:
        form = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else layout
        raise UserError(f"{path}: {name} is a {form} tensor; save weights as plain (dense) tensors")
    if tensor.device.type != "cpu":
        raise UserError(
            f"{path}: {name} has a shape but no data (device {tensor.device}); save a model with its weights"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{path}: {name} of {list(tensor.shape)} is larger than its data; save its contiguous() copy")


def _load(path: Path) -> Any:
    try:
        _check_structure(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their content is in the errors below
            # PyTorch's format before 1.6 is no zip file and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise UserError(f"{path} was not opened: it is no PyTorch file, or asks for more than tensors (code)") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is neither a PyTorch nor an rwkv.cpp file, or is damaged ({reason}); get it again"
        ) from None


def check(source: Path, config: ModelConfig) -> None:
    """Refuse a model that the reference's code would compute otherwise, or not at all."""
    if config.spikes == "before":
        raise UsageError(f"{source} is an event-driven model, which the published checkpoints cannot express")
    if config.spikes == "after" and (config.tau, config.threshold, config.spike_embedding) != (2.0, 1.0, True):
        raise UsageError(f"{source}: the reference has no such neurons (tau 2, threshold 1, and its embedding spikes)")
    if config.spikes == "after" and config.hidden != 4 * config.n_embd:
        raise UsageError(f"{source} has a hidden layer of {config.hidden}, the reference of {4 * config.n_embd}")


def write(path: Path, config: ModelConfig, stored: Mapping[str, Stored]) -> None:
    """A state dict; the tensors stay mapped to their file while they are copied."""
    try:
        with path.open("wb") as file:
            torch.save({name: tensor.read() for name, tensor in stored.items()}, file)
    except RuntimeError as error:  # what PyTorch's writer makes of a full disk
        raise OSError("PyTorch stopped writing, as on a full disk") from error

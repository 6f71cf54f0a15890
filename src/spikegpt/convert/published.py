"""The reference's checkpoints: a state dict in PyTorch's file format (`.pth`), of SpikeGPT or RWKV-4."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import UsageError, UserError
from .stored import Stored

SUFFIX = ".pth"


def read(path: Path) -> dict[str, Stored]:
    """The tensors of a state dict; the file is mapped, and nothing that it asks for is executed."""
    content = _load(path)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no state dict but {type(content).__name__}; save model.state_dict() alone")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {name!r} is {type(value).__name__}, not a tensor; save model.state_dict() alone")
    return {name: Stored(t.dtype, tuple(t.shape), lambda t=t: t.detach()) for name, t in content.items()}


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they tell of is in the errors below
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

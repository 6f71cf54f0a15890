"""What a training checkpoint must hold before a run resumes from it: everything in the file is checked, nothing believed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import TRAINING, TRAINING_TENSORS
from ..config import ConfigError, TrainConfig
from ..errors import UserError

_KINDS: dict[str, tuple[type, ...]] = {
    "step": (int,), "run": (dict,), "windows": (dict,), "scaler": (dict, type(None)), "last": (dict,), "losses": (list,),
    "best": (float, type(None)), "worse": (int,),
}  # fmt: skip
_ADVICE = "the checkpoint is damaged; delete it to resume from the one before"


def check_values(path: Path, values: dict[str, Any]) -> None:
    """Refuse the values of the checkpoint `path` where one is missing or not of its kind.

    Settings that the version which wrote them did not know get their defaults.
    """
    for name, kinds in _KINDS.items():
        if name not in values or not isinstance(values[name], kinds) or isinstance(values[name], bool):
            raise _damaged(path / TRAINING, name, values.get(name))
    run = values["run"]
    if not _is_count(run.get("processes")) or run["processes"] == 0:
        raise _damaged(path / TRAINING, "run.processes", run.get("processes"))
    if not isinstance(run.get("train"), dict):
        raise _damaged(path / TRAINING, "run.train", run.get("train"))
    if not _is_count(values["windows"].get("step")):
        raise _damaged(path / TRAINING, "windows.step", values["windows"].get("step"))
    if not all(isinstance(loss, int | float) for loss in values["losses"]):
        raise _damaged(path / TRAINING, "losses", values["losses"])
    try:
        run["train"] = TrainConfig.from_dict(run["train"]).to_dict()
    except ConfigError as error:
        raise UserError(f"{path / TRAINING}: {error}; {_ADVICE}") from None


def check_tensors(path: Path, tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Refuse the trainer's tensors where the optimiser's do not fit the model's parameters, or the random state is none."""
    file = path / TRAINING_TENSORS
    random = tensors.get("random.cpu")
    if (
        random is None
        or random.dtype != torch.uint8
        or random.ndim != 2
        or random.shape[1] != len(torch.get_rng_state())
    ):
        raise UserError(f"{file} has no random state; {_ADVICE}")
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    kept: dict[str, set[str]] = {name: set() for name in shapes}
    for full, tensor in tensors.items():
        if not (match := re.fullmatch(r"optimizer\.(.+)\.(\w+)", full)):
            continue
        name, key = match.groups()
        if name not in shapes or (tensor.ndim and tensor.shape != shapes[name]) or not tensor.is_floating_point():
            raise UserError(f"{file}: {full} is {list(tensor.shape)}, which is no state of this model; {_ADVICE}")
        kept[name].add(key)
    if lacking := [name for name, keys in kept.items() if not keys or keys != set.union(*kept.values())]:
        raise UserError(f"{file} lacks the optimiser's state of {lacking[0]}; {_ADVICE}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _damaged(file: Path, name: str, value: Any) -> UserError:
    return UserError(f"{file}: {name} is {repr(value)[:60]}; {_ADVICE}")

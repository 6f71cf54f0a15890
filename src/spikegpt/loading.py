"""From a name to a model that runs: the shipped one, a directory, a training run or a preset; in floats or in integers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch

from .checkpoint import PathLike, load_model, resolve
from .config import PRESETS, ModelConfig, preset
from .engine import EventModel, FixedEventModel, run
from .engine.packed import is_fixed, is_packed, unpack
from .errors import UsageError, UserError
from .model.spikegpt import SpikeGPT
from .tokenizer import ByteTokenizer, Tokenizer

PACKAGED = {name: Path(__file__).parent / name for name in ("shipped", "children")}
"""The trained models inside the package."""
SHIPPED = PACKAGED["shipped"]
ENGINES = ("auto", "float", "event", "fixed")


@overload
def load(
    name: PathLike | None = None,
    *,
    device: torch.device | str | None = "cpu",
    backend: str = "auto",
    engine: Literal["float"],
) -> SpikeGPT: ...
@overload
def load(
    name: PathLike | None = None,
    *,
    device: torch.device | str | None = "cpu",
    backend: str = "auto",
    engine: str = "auto",
    threads: int | None = None,
) -> Any: ...
def load(
    name: PathLike | None = None,
    *,
    device: torch.device | str | None = "cpu",
    backend: str = "auto",
    engine: str = "auto",
    threads: int | None = None,
) -> Any:
    """The model called `name`, ready to generate, its tokenizer in `model.tokenizer`.

    None, or "shipped", is the small trained model inside the package, "children" the one that writes tales. A directory
    is a saved or packed model, or a training run: its finished model, else its latest complete checkpoint. A preset's name
    gives that shape untrained, over bytes.
    engine="event" runs an event-driven model in integers on the CPU (`engine.EventModel`, called the same way), "float"
    as a `SpikeGPT`, "fixed" in integers without any float between (`engine.FixedEventModel`); "auto" takes the first for
    packed models, the third for those packed with `--fixed`, if the engine is built here, and the second for all others.
    `threads` are those of both (None: as many as pay). `device` None is a GPU if there is one, else the CPU.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine {engine!r} is not one of {', '.join(ENGINES)}")
    device = usable(device)
    path = SHIPPED if name is None else _named(name)
    if path in PACKAGED.values() and not path.is_dir():
        raise UserError(
            f"this spikegpt came without its trained models; name a directory, or one of {', '.join(PRESETS)}"
        )
    if path.is_dir():
        path = resolve(path)
        packed = is_packed(path)
        if engine == "fixed" or (is_fixed(path) and engine == "auto" and not run.MISSING):
            return FixedEventModel.load(path, threads=threads)
        if engine == "event" or (packed and engine == "auto" and not run.MISSING):
            return EventModel.load(path, threads=threads)
        return unpack(path).to(device) if packed else load_model(path, device=device, backend=backend)
    if str(name) not in PRESETS:
        mend = f"; if it is a checkpoint, convert it first: spikegpt convert {path} DIR" if path.is_file() else ""
        known = ", ".join((*PACKAGED, *PRESETS))
        raise UsageError(f"no model {str(name)!r}: it is neither a directory nor one of {known}{mend}")
    if engine in ("event", "fixed"):
        raise UsageError(f"the preset {name} is not event-driven; train it with --spikes before first")
    tokenizer = ByteTokenizer()
    model = SpikeGPT(preset(str(name), vocab_size=tokenizer.vocab_size), backend=backend)
    model.tokenizer = tokenizer
    return model.to(device).eval()


def usable(device: torch.device | str | None) -> torch.device:
    """The device called so, which must be here; None: a GPU if there is one, else the CPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise UsageError(f"no device {str(device)!r} here; there is {', '.join(there)}") from None
    return torch.device(device)


def load_teachers(
    directories: PathLike | Sequence[PathLike] | None, student: ModelConfig, tokenizer: Tokenizer
) -> list[SpikeGPT]:
    """The models in one directory or several, whose predictions another with the same tokenizer is to learn."""
    if directories is None:
        return []
    if isinstance(directories, str | os.PathLike):
        directories = [directories]
    return [_load_teacher(directory, student, tokenizer) for directory in directories]


def _load_teacher(directory: PathLike, student: ModelConfig, tokenizer: Tokenizer) -> SpikeGPT:
    teacher = load(str(directory), engine="float")
    mend = "a teacher must have the same tokenizer"
    if teacher.config.vocab_size != student.vocab_size:
        raise UsageError(
            f"the teacher {directory} has {teacher.config.vocab_size} tokens, the model {student.vocab_size}; {mend}"
        )
    if teacher.tokenizer is None or teacher.tokenizer.digest != tokenizer.digest:
        raise UsageError(f"the teacher {directory} cuts text into other tokens than the model; {mend}")
    return teacher


def _named(name: PathLike) -> Path:
    """Where a model of that name lies if there is one: a directory comes before a model in the package."""
    path = Path(name)
    return path if path.is_dir() else PACKAGED.get(str(name), path)


def model_directory(name: PathLike) -> Path:
    """The directory meant by `name`: a model's, a run's latest checkpoint, or one in the package; UsageError otherwise."""
    path = _named(name)
    if not path.is_dir():
        raise UsageError(f"no model {str(name)!r}: it is neither a directory nor one of {', '.join(PACKAGED)}")
    return resolve(path)

"""Models on disk: a directory of `config.json`, `model.safetensors` and `tokenizer.json`; nothing is ever unpickled.

A directory appears whole or not at all: it is written under a hidden name, flushed to the disk, then renamed.
A training run keeps `checkpoints/step-00000200/`, each a model directory with the trainer's own state beside it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import hub
from .config import ConfigError, ModelConfig
from .errors import UsageError, UserError
from .files import cannot_write, write_readable
from .model.spikegpt import SpikeGPT
from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

FORMAT = 1
"""Number of the layout of a model directory; a newer one is refused."""
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
TRAINING_TENSORS, TRAINING = "training.safetensors", "training.json"
CHECKPOINTS = "checkpoints"
_MODEL_FILES = {WEIGHTS, CONFIG, TOKENIZER, *hub.FILES}

PathLike = str | os.PathLike[str]


def resolve(directory: Path) -> Path:
    """The model directory meant by `directory`: itself, or a run's latest complete checkpoint."""
    if (directory / WEIGHTS).exists():
        return directory
    return latest_checkpoint(directory) or directory


def load_model(directory: PathLike, *, device: torch.device | str = "cpu", backend: str = "auto") -> SpikeGPT:
    """Read a model directory; a UserError says in one line what is wrong with it.

    Weights are float32 whatever they are stored in. On a CPU they stay mapped to the file and are read as they are
    first used, so that memory stays near the file's size.
    """
    directory = Path(directory)
    config = read_config(directory)
    tokenizer = load_tokenizer(directory)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{directory}: its tokenizer has {tokenizer.vocab_size} tokens, its model only {config.vocab_size}; "
            "they do not belong together"
        )
    with torch.device("meta"):
        model = SpikeGPT(config, backend=backend)
    load_weights(model, directory / WEIGHTS, device=device, assign=True)
    model.tokenizer = tokenizer
    return model.eval()


def read_config(directory: Path) -> ModelConfig:
    """The `ModelConfig` in a model directory."""
    path = directory / CONFIG
    values = _read_json(path)
    if values.pop("model_type", None) != "spikegpt":
        raise UserError(f"{path} does not describe a SpikeGPT model")
    _check_format(path, values.pop("format", None))
    if "auto_map" in values:  # a directory for the Hugging Face hub: `transformers` adds fields of its own
        own = {field.name for field in dataclasses.fields(ModelConfig)}
        values = {name: value for name, value in values.items() if name in own}
    try:
        return ModelConfig.from_dict(values)
    except (ConfigError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None


def load_weights(model: SpikeGPT, path: Path, *, device: torch.device | str = "cpu", assign: bool = False) -> None:
    """Fill every parameter and saved buffer of `model` from `path`; `assign` replaces them, as a "meta" model needs."""
    expected = model.state_dict()
    with _open(path) as file:
        _check_tensors(path, {name: list(file.get_slice(name).get_shape()) for name in file.keys()}, expected)  # noqa: SIM118
        tensors = {name: file.get_tensor(name).to(device, torch.float32) for name in expected}
    model.load_state_dict(tensors, assign=assign)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:  # counters that are not saved begin at zero
                setattr(module, name, torch.zeros_like(buffer, device=device))


def save_model(
    directory: PathLike,
    model: SpikeGPT,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    force: bool = False,
) -> None:
    """Write a model directory as a whole; one that exists is replaced only with `force`, and only if it is a model.

    `tokenizer` is by default the model's own; `dtype` is what weights are rounded to. UsageError: there is none, or the
    directory must not be replaced.
    """
    directory = Path(directory)
    tokenizer = tokenizer or model.tokenizer
    if tokenizer is None:
        raise UsageError("the model has no tokenizer to save with it; pass one")
    check_replaceable(directory, force)
    write_directory(directory, lambda inside: write_model(inside, model, tokenizer, dtype))


def write_model(directory: Path, model: SpikeGPT, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32) -> None:
    """Put the three files of a model into an existing directory."""
    tokenizer.save(directory)
    write_json(directory / CONFIG, describe(model.config))
    write_tensors(directory / WEIGHTS, {name: tensor.to(dtype) for name, tensor in model.state_dict().items()})


def describe(config: ModelConfig) -> dict[str, Any]:
    """The contents of `config.json`."""
    return {"format": FORMAT, "model_type": "spikegpt", **config.to_dict()}


def publish(directory: Path, model: SpikeGPT) -> None:
    """Write a run's finished model beside its checkpoints, the weights last: they are what makes it one."""
    assert model.tokenizer is not None
    tokenizer = model.tokenizer
    staged = directory / f".finished.tmp-{os.getpid()}"
    write_directory(staged, lambda inside: write_model(inside, model, tokenizer))
    for name in (TOKENIZER, CONFIG, WEIGHTS):
        os.replace(staged / name, directory / name)
    staged.rmdir()
    _sync(directory)


def checkpoint_path(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of that step."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def latest_checkpoint(run: Path) -> Path | None:
    """The run's newest checkpoint; directories get their final name only once they are complete."""
    found = sorted((run / CHECKPOINTS).glob("step-*"))
    return found[-1] if found else None


def save_checkpoint(
    run: Path, step: int, model: SpikeGPT, *,
    tensors: dict[str, Tensor], values: dict[str, Any], keep: int, also: Callable[[Path], None] | None = None,
) -> Path:  # fmt: skip
    """Write the checkpoint of `step`, a model directory with the trainer's `tensors` and `values`; keep the newest."""
    assert model.tokenizer is not None
    tokenizer = model.tokenizer

    def fill(inside: Path) -> None:
        write_model(inside, model, tokenizer)
        write_tensors(inside / TRAINING_TENSORS, tensors)
        write_json(inside / TRAINING, {"format": FORMAT, "step": step, **values})
        if also is not None:
            also(inside)

    path = checkpoint_path(run, step)
    write_directory(path, fill)
    for old in sorted(path.parent.glob("step-*"))[:-keep]:
        _remove(old)
    return path


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trainer's tensors and values in a checkpoint."""
    values = _read_json(path / TRAINING)
    _check_format(path / TRAINING, values.get("format"))
    with _open(path / TRAINING_TENSORS) as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, values  # noqa: SIM118


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Make the directory `path` with what `fill` writes, all of it or nothing; an existing one is replaced."""
    staged = path.parent / f".{path.name}.tmp-{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        staged.mkdir()
        fill(staged)
        for file in staged.iterdir():
            _sync(file)
        _sync(staged)
        _remove(path)
        os.rename(staged, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise cannot_write(path, error) from None
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def remove_leftovers(directory: Path, name: str = "*") -> None:
    """Delete what a killed process left half-written in `directory`."""
    for leftover in directory.glob(f".{name}.tmp-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file of copies on the CPU."""
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_readable(path, lambda file: save_file(copies, file))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """A JSON file, indented."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _remove(path: Path) -> None:
    """Delete a directory that may be seen by others: renamed first, so that nobody meets half of it."""
    if path.exists():
        doomed = path.parent / f".{path.name}.tmp-{os.getpid()}-old"
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    """Flush a file, or a directory's list of names, to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_replaceable(directory: Path, force: bool) -> None:
    """Refuse a directory that exists, unless it is empty or, with `force`, a model's."""
    if others := sorted(names_to_replace(directory, force) - _MODEL_FILES):
        raise UsageError(f"{directory} holds more than a model ({', '.join(others[:3])}); choose another directory")


def names_to_replace(directory: Path, force: bool) -> set[str]:
    """What is in a directory that is about to be written; UsageError if there is anything, unless `force`."""
    if not directory.exists():
        return set()
    inside = {entry.name for entry in directory.iterdir()} if directory.is_dir() else {directory.name}
    if inside and not force:
        raise UsageError(
            f"{directory} already exists; choose another directory or replace it with --force (force=True)"
        )
    return inside


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path.parent} is not a model directory: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no JSON ({error}); the directory is damaged or of another program") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object; the directory is of another program")
    return values


def _check_format(path: Path, number: Any) -> None:
    if not isinstance(number, int):
        raise UserError(f"{path} has no format number: it was not written by spikegpt")
    if number > FORMAT:
        raise UserError(f"{path} has format {number}, this spikegpt reads up to {FORMAT}: upgrade spikegpt")


def _check_tensors(path: Path, found: dict[str, list[int]], expected: dict[str, Tensor]) -> None:
    for verb, names in (("lacks", expected.keys() - found.keys()), ("has unknown", found.keys() - expected.keys())):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise UserError(f"{path} {verb} {len(names)} tensor(s) ({shown}); these are not this model's weights")
    for name, shape in found.items():
        if shape != list(expected[name].shape):
            raise UserError(f"{path}: {name} is {shape}, but {CONFIG} makes it {list(expected[name].shape)}")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """An open safetensors file; whatever is wrong with it becomes a UserError."""
    if not path.is_file():
        raise UserError(f"{path.parent} is not a model directory: it has no {path.name}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}); get or save it again") from None

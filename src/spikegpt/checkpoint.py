"""Models on disk: a directory of `config.json`, `model.safetensors` and `tokenizer.json`; nothing is ever unpickled.

The weights may also be split over files that `model.safetensors.index.json` names, as `transformers` writes large models.
A training run keeps `checkpoints/step-00000200/`, each a model directory with the trainer's own state beside it;
whatever else lies among them is not the run's, and is neither read nor deleted.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import hub
from .config import ModelConfig
from .errors import UsageError, UserError
from .files import (
    absolute,
    read_json,
    remove_directory,
    write_atomically,
    write_directory,
    write_json,
    write_readable,
)
from .model.spikegpt import SpikeGPT
from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

FORMAT = 1
"""Number of the layout of a model directory; a newer one is refused."""
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
INDEX = "model.safetensors.index.json"
"""Which tensor is in which file, where the weights are split over several."""
TRAINING_TENSORS, TRAINING = "training.safetensors", "training.json"
CHECKPOINTS = "checkpoints"
_MODEL_FILES = {WEIGHTS, INDEX, CONFIG, TOKENIZER, *hub.FILES}
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PLAIN_NAME = re.compile(r"[\w-][\w.-]{0,199}")  # of a file in the same directory
_INDEX_BYTES = 1 << 24  # largest INDEX that is read

PathLike = str | os.PathLike[str]


def resolve(directory: Path) -> Path:
    """The model directory meant by `directory`: itself, or a run's latest complete checkpoint."""
    if has_weights(directory):
        return directory
    return latest_checkpoint(directory) or directory


def has_weights(directory: Path) -> bool:
    """Whether `directory` holds a model's weights, in one file or several."""
    return (directory / WEIGHTS).exists() or (directory / INDEX).exists()


def weight_files(directory: Path, whole: str = WEIGHTS) -> list[Path]:
    """The files with the weights of a model directory: the one called `whole`, or those that its index names."""
    index = directory / f"{whole}.index.json"
    if (directory / whole).exists() or not index.exists():
        return [directory / whole]
    named = _read_json(index, limit=_INDEX_BYTES).get("weight_map")
    names = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
    if not names or not all(_PLAIN_NAME.fullmatch(name) and name.endswith(Path(whole).suffix) for name in names):
        raise UserError(f"{index} does not say which files beside it hold the weights; get it again")
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise UserError(f"{directory} lacks {len(missing)} of the {len(names)} files of its weights ({missing[0]})")
    return [directory / name for name in names]


def load_model(directory: PathLike, *, device: torch.device | str = "cpu", backend: str = "auto") -> SpikeGPT:
    """Read a model directory; a UserError says in one line what is wrong with it.

    Weights become float32 whatever they are stored in. On a CPU they stay mapped to the file and are read when they are
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
    with _open(weight_files(directory)) as weights:
        check_layers(config, weights, directory)
    with torch.device("meta"):
        model = SpikeGPT(config, backend=backend)
    load_weights(model, directory, device=device, assign=True)
    model.tokenizer = tokenizer
    return model.eval()


def check_layers(config: ModelConfig, tensors: Sequence[str] | dict[str, Any], where: Path) -> None:
    """Refuse a config with more layers than there are tensors, before memory or time is spent on such a model."""
    if config.n_layer > len(tensors):
        raise UserError(
            f"{where}: {CONFIG} has {config.n_layer} layers, but the weights are only {len(tensors)} tensors; "
            "they do not belong together"
        )


def read_config(directory: Path) -> ModelConfig:
    """The `ModelConfig` in a model directory."""
    path = directory / CONFIG
    values = _read_json(path)
    if (family := values.pop("model_type", None)) != "spikegpt":
        convertible = f"; convert it first: spikegpt convert {directory} DIR" if family == "rwkv" else ""
        raise UserError(f"{path} does not describe a SpikeGPT model{convertible}")
    _check_format(path, values.pop("format", None))
    if "auto_map" in values:  # a directory for the Hugging Face hub: `transformers` adds fields of its own
        own = {field.name for field in dataclasses.fields(ModelConfig)}
        values = {name: value for name, value in values.items() if name in own}
    try:
        return ModelConfig.from_dict(values)
    except (UsageError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None


def load_weights(model: SpikeGPT, directory: Path, *, device: torch.device | str = "cpu", assign: bool = False) -> None:
    """Fill every parameter and saved buffer from a model directory; `assign` replaces them, as a "meta" model needs."""
    expected = model.state_dict()
    with _open(weight_files(directory)) as weights:
        _check_tensors(directory, {n: list(file.get_slice(n).get_shape()) for n, file in weights.items()}, expected)
        tensors = {name: weights[name].get_tensor(name).to(device, torch.float32) for name in expected}
    model.load_state_dict(tensors, assign=assign)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:  # counters that are not saved start at zero
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


def write_model(
    directory: Path, model: SpikeGPT, tokenizer: Tokenizer | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Put the files of a model into an existing directory, each whole, the weights last: they make it a model.

    `tokenizer` is by default the model's own.
    """
    tokenizer = tokenizer or model.tokenizer
    assert tokenizer is not None
    write_description(directory, model.config, tokenizer)
    write_tensors(directory / WEIGHTS, {name: tensor.to(dtype) for name, tensor in model.state_dict().items()})


def write_description(directory: Path, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Put all files of a model but its weights into an existing directory.

    Beside configuration and tokenizer goes what tells `generate` of transformers which token ends a text.
    """
    tokenizer.save(directory)
    write_json(directory / hub.GENERATION, hub.generation_config(tokenizer, config.vocab_size))
    write_json(directory / CONFIG, describe(config))


def describe(config: ModelConfig) -> dict[str, Any]:
    """The contents of `config.json`."""
    return {"format": FORMAT, "model_type": "spikegpt", **config.to_dict()}


def checkpoint_path(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of that step."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def checkpoint_step(path: Path) -> int | None:
    """The step of the checkpoint that has this path in a run; None: no checkpoint has such a name."""
    digits = path.name.removeprefix("step-")
    if path.parent.name != CHECKPOINTS or not (digits.isascii() and digits.isdecimal()):
        return None
    return int(digits) if path.name == f"step-{int(digits):08d}" else None


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first; directories get their name only once they are complete."""
    steps = {path: checkpoint_step(path) for path in (run / CHECKPOINTS).glob("step-*") if (path / TRAINING).is_file()}
    return sorted((path for path, step in steps.items() if step is not None), key=lambda path: steps[path] or 0)


def latest_checkpoint(run: Path) -> Path | None:
    """The run's newest checkpoint."""
    return next(reversed(checkpoints(run)), None)


def beside(directory: Path, suffix: str) -> Path:
    """Where to write what is made from a model directory: beside it, or beside the run that a checkpoint belongs to."""
    path = absolute(directory)
    if checkpoint_step(path) is not None:
        run = path.parent.parent
        return run.with_name(f"{run.name}-{path.name}{suffix}")
    return path.with_name(path.name + suffix)


def save_checkpoint(
    run: Path, step: int, model: SpikeGPT, *,
    tensors: dict[str, Tensor], values: dict[str, Any], keep: int, also: Callable[[Path], None] | None = None,
) -> Path:  # fmt: skip
    """Write the checkpoint of `step`, a model directory with the trainer's `tensors` and `values`; keep the newest."""

    def fill(inside: Path) -> None:
        write_model(inside, model)
        write_tensors(inside / TRAINING_TENSORS, tensors)
        write_json(inside / TRAINING, {"format": FORMAT, "step": step, **values})
        if also is not None:
            also(inside)

    path = checkpoint_path(run, step)
    write_directory(path, fill)
    for old in [each for each in checkpoints(run) if _is_as_written(each)][:-keep]:
        remove_directory(old)
    return path


def _is_as_written(path: Path) -> bool:
    """Whether a checkpoint is one that training wrote there, neither a copy under another name nor a link."""
    try:
        return not path.is_symlink() and _read_json(path / TRAINING, finite=False).get("step") == checkpoint_step(path)
    except UserError:
        return False


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trainer's tensors and values in a checkpoint."""
    values = _read_json(path / TRAINING, finite=False)  # a scaled gradient may have overflowed
    _check_format(path / TRAINING, values.get("format"))
    if values.get("step") != checkpoint_step(path):
        raise UserError(f"{path} is of step {values.get('step')}, by its {TRAINING}: a copy; move it elsewhere")
    with _open([path / TRAINING_TENSORS]) as tensors:
        return {name: file.get_tensor(name).clone() for name, file in tensors.items()}, values


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file of copies on the CPU, written whole or not at all."""
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda staged: write_readable(staged, lambda file: save_file(copies, file)))


def check_replaceable(directory: Path, force: bool) -> None:
    """Refuse a directory that exists, unless it is empty or, with `force`, a model's."""
    names = names_to_replace(directory, force) - _MODEL_FILES
    if others := sorted(name for name in names if not _SHARD.fullmatch(name)):
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


def _read_json(path: Path, **limits: Any) -> dict[str, Any]:
    try:
        return read_json(path, **limits)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path.parent} is not a model directory: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is no JSON ({error}); the directory is damaged, or was written by another program"
        ) from None


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
def _open(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The open file of each tensor of safetensors files, by name; whatever is wrong with one becomes a UserError."""
    path = paths[0]
    try:
        with ExitStack() as stack:
            tensors: dict[str, Any] = {}
            for path in paths:
                if not path.is_file():
                    raise UserError(f"{path.parent} is not a model directory: it has no {path.name}")
                file = stack.enter_context(safe_open(path, framework="pt"))
                for name in file.keys():  # noqa: SIM118
                    if name in tensors:
                        raise UserError(f"{path.parent} has {name} in two files; get it again")
                    tensors[name] = file
            yield tensors
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}); get or save it again") from None

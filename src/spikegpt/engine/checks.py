"""Whether the arrays of a packed model fit its config and each other, before any of them is used."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..config import ModelConfig
from ..errors import UsageError, UserError
from ..model.sites import Site, sites
from ..model.spikegpt import SpikeGPT
from .steps import split

GROUP = 128
"""Inputs that share a scale where weights have 4 bits; a multiple of 64."""
BITS = (8, 4)

Form = tuple[type[np.generic], tuple[int, ...]]
"""Type and shape of an array."""


def check_event_driven(config: ModelConfig) -> None:
    """UsageError where some product of the model reads floats, which no integer engine can run."""
    if config.spikes != "before":
        raise UsageError(
            f'this model has spikes="{config.spikes}", so its products read floats and nothing can be skipped: '
            "train one with --spikes before, or turn this one into one with `spikegpt spikify`"
        )


def check_bits(bits: int) -> None:
    """UsageError for a width of weights that there is not."""
    if bits not in BITS:
        raise UsageError(f"bits={bits} is not one of {', '.join(map(str, BITS))}")


def check_arrays(config: ModelConfig, bits: int, arrays: dict[str, np.ndarray]) -> None:
    """UserError unless there is every array that a model of this config has, and no other, each of its type, shape and range.

    Floats must be finite; thresholds and units above 0, scales not negative and, of several groups of inputs, whole numbers
    of steps (`steps`). Integers may have any value: every one of them
    is a weight.
    """
    _check_sizes(config, arrays)
    forms = _forms(config, bits)
    if missing := [name for name in forms if name not in arrays]:
        raise UserError(f"there is no array {_some(missing)}")
    if unknown := [name for name in arrays if name not in forms]:
        raise UserError(f"the config has no place for array {_some(unknown)}")
    for name, form in forms.items():
        _check_form(name, arrays[name], form)
        if arrays[name].dtype == np.float32:
            _check_values(name, arrays[name])
    if bits == 4:
        _check_steps(config, arrays)


def _check_sizes(config: ModelConfig, arrays: dict[str, np.ndarray]) -> None:
    """UserError for sizes that the arrays cannot have, before a table of that size is made."""
    if config.n_layer > len(arrays):
        raise UserError(f"the config has {config.n_layer} layers, and there are only {len(arrays)} arrays")
    values, largest = sum(array.size for array in arrays.values()), max(config.vocab_size, config.n_embd, config.hidden)
    if largest > values:
        raise UserError(
            f"the config has a width or vocabulary of {largest}, and all arrays together only {values} values"
        )


def _forms(config: ModelConfig, bits: int) -> dict[str, Form]:
    """Type and shape of every array by name."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in SpikeGPT(config).state_dict().items()}
    forms: dict[str, Form] = {name: (np.float32, shape) for name, shape in shapes.items()}
    forms["emb.weight"] = np.int8, shapes["emb.weight"]
    forms["emb.scale"] = np.float32, (config.vocab_size,)
    if "lookup.weight" in shapes:
        forms |= {"lookup.weight": (np.int16, shapes["lookup.weight"]), "lookup.scale": (np.float32, (1,))}
    for site in sites(config):
        forms |= _matrix_forms(site, bits)
    return forms


def _matrix_forms(site: Site, bits: int) -> dict[str, Form]:
    groups = math.ceil(site.inputs / GROUP) if bits == 4 else 1
    stored = math.ceil(site.outputs / 2) if bits == 4 else site.outputs
    return {
        f"{site.name}.weight": (np.uint8 if bits == 4 else np.int8, (site.inputs, stored)),
        f"{site.name}.scale": (np.float32, (groups, site.outputs)),
    }


def _check_form(name: str, array: np.ndarray, form: Form) -> None:
    dtype, shape = form
    if array.dtype != dtype:
        raise UserError(f"array {name} has type {array.dtype}, not {np.dtype(dtype)}")
    if array.shape != shape:
        raise UserError(f"array {name} has shape {list(array.shape)}, not {list(shape)}")


def _check_values(name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise UserError(f"array {name} has a value that is infinite or not a number")
    if name.endswith((".threshold", ".unit")) and not (array > 0).all():
        raise UserError(f"array {name} has a value that is not above 0")
    if name.endswith(".scale") and not (array >= 0).all():
        raise UserError(f"array {name} has a negative value")
    if name.endswith(".time_decay") and not (array < math.log(np.finfo(np.float32).max)).all():
        raise UserError(f"array {name} has a value whose exponential is infinite")


def _check_steps(config: ModelConfig, arrays: dict[str, np.ndarray]) -> None:
    assert config.event is not None
    for site in sites(config):
        scale = arrays[f"{site.name}.scale"]
        try:
            if len(scale) > 1:
                split(scale, site.inputs, config.event.levels)
        except ValueError as error:
            raise UserError(f"array {site.name}.scale has {error}") from None


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

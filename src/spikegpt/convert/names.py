"""Names and shapes of the published checkpoints: what they say about a model, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from ..config import ConfigError, ModelConfig, Spikes
from ..errors import UserError
from ..model.spikegpt import SpikeGPT
from .stored import DTYPES, Stored

_LATER = (".ln_x.", ".time_faaaa", ".time_maa_", ".time_mix_g", ".x_r")
"""In names of RWKV-5, 6 and 7."""


_WRAPPERS = {"module", "model", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What training frameworks put into the names of a model that they wrap: DDP, Lightning, torch.compile, DeepSpeed, FSDP."""


def unwrapped(path: Path, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors under their names in the model itself, whatever it was wrapped in when they were saved."""
    names = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in stored}
    if len(set(names.values())) < len(names):
        twice = next(name for name in names if list(names.values()).count(names[name]) > 1)
        raise UserError(f"{path} has {names[twice]} more than once, one of them as {twice}; save one model's weights")
    return {names[name]: tensor for name, tensor in stored.items()}


def config_of(path: Path, stored: Mapping[str, Stored], *, spikes: Spikes, spike_embedding: bool | None) -> ModelConfig:
    """The model that these tensors are the weights of; UserError names the first tensors that do not fit."""
    if later := next((name for name in stored if any(part in name for part in _LATER)), None):
        raise UserError(f"{path} holds a later RWKV than version 4 (it has {later}), which cannot be used here")
    if "emb.weight" not in stored or len(stored["emb.weight"].shape) != 2:
        raise UserError(f"{path} does not hold the weights of a SpikeGPT or RWKV-4: it has no matrix emb.weight")
    vocab_size, channels = stored["emb.weight"].shape
    numbers = {name.split(".")[1] for name in stored if name.startswith("blocks.")}
    blocks = {int(number) for number in numbers if number.isascii() and number.isdecimal() and len(number) < 10}
    if (layers := max(blocks, default=0) + 1) > len(stored):
        raise UserError(f"{path} has a block {layers - 1}, but only {len(stored)} tensors: it lacks blocks in between")
    key = stored.get("blocks.0.ffn.key.weight")
    hidden = key.shape[0] if key and key.shape else 4 * channels
    try:
        config = ModelConfig(
            vocab_size=vocab_size,
            n_embd=channels,
            n_ffn=None if hidden == 4 * channels else hidden,
            n_layer=layers,
            architecture="RWKV-ffnPre" if any(name.startswith("blocks.0.ffnPre.") for name in stored) else "RWKV",
            spikes=spikes,
            spike_embedding=spike_embedding,
        )
    except ConfigError as error:
        raise UserError(f"{path} cannot be used: {error}") from None
    check(path, stored, config)
    return config


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of such a model, by name."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in SpikeGPT(config).state_dict().items()}


def renamed(stored: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    """The tensors in the published shapes: some files leave the ones out of [1, 1, C]."""
    return {name: stored[name].reshaped(shape) for name, shape in shapes(config).items()}


def check(path: Path, stored: Mapping[str, Stored], config: ModelConfig) -> None:
    """UserError unless the tensors are those of such a model: reports missing names first, then unknown ones, then shapes."""
    expected = shapes(config)
    if missing := [name for name in expected if name not in stored]:
        raise UserError(f"{path} lacks {_listed(missing)} of the {len(expected)} tensors that its layers need")
    if unknown := [name for name in stored if name not in expected]:
        raise UserError(f"{path} has {_listed(unknown)} that a SpikeGPT or RWKV-4 does not know")
    for name, shape in expected.items():
        found = stored[name]
        if _squeezed(found.shape) != _squeezed(shape):
            raise UserError(f"{path} contradicts itself: {name} is {list(found.shape)}, not {list(shape)} as the rest")
        if found.dtype not in DTYPES.values():
            raise UserError(f"{path}: {name} is of type {found.dtype}; weights are float32, float16 or bfloat16")


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (math.prod(shape),) if shape[:-1] == (1,) * (len(shape) - 1) else shape


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(name[:80] for name in list(names)[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} ({shown})"

"""transformers' RWKV-4 (`RwkvForCausalLM`): a directory of `config.json` and weights, or a state dict under its names.

Same mathematics and shapes as the published checkpoints; only the names differ, as in
`rwkv.blocks.0.attention.time_mix_key` for `blocks.0.att.time_mix_k`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import CONFIG, INDEX, WEIGHTS, weight_files
from ..errors import UserError
from ..files import read_json
from . import published
from .stored import Stored, read_safetensors

MODEL_TYPE = "rwkv"
"""Of such a directory's `config.json`."""
PICKLED = "pytorch_model.bin"
"""Weights in PyTorch's file format, in directories that have no safetensors; may be split as `PICKLED.index.json` says."""

_EPSILON = 1e-5  # of every layer normalisation
_RENAMED = {
    "embeddings": "emb", "pre_ln": "ln0", "attention": "att", "feed_forward": "ffn",
    "time_mix_key": "time_mix_k", "time_mix_value": "time_mix_v", "time_mix_receptance": "time_mix_r",
}  # fmt: skip


def is_one(directory: Path) -> bool:
    """Whether a directory says that it holds such a model."""
    try:
        return read_json(directory / CONFIG).get("model_type") == MODEL_TYPE
    except (OSError, ValueError):
        return False


def read(directory: Path) -> dict[str, Stored]:
    """The tensors of a directory, under transformers' names. UserError where the model computes anything but RWKV-4."""
    config = read_json(directory / CONFIG)
    _check_settings(directory / CONFIG, config)
    stored: dict[str, Stored] = {}
    if (directory / WEIGHTS).exists() or (directory / INDEX).exists():
        for path in weight_files(directory):
            stored |= read_safetensors(path)
    elif (directory / PICKLED).exists() or (directory / f"{PICKLED}.index.json").exists():
        for path in weight_files(directory, PICKLED):
            stored |= published.read(path)
    else:
        raise UserError(f"{directory} has no weights: neither {WEIGHTS} nor {PICKLED}, nor an index of several files")
    if config.get("tie_word_embeddings") is True and "head.weight" not in stored and "rwkv.embeddings.weight" in stored:
        stored["head.weight"] = stored["rwkv.embeddings.weight"]
    return stored


def has_its_names(stored: Mapping[str, Stored]) -> bool:
    """Whether tensors are called as in transformers."""
    return any(".attention." in name or name.endswith("embeddings.weight") for name in stored)


def renamed(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors under the published names; what has none keeps its own."""
    return {
        ".".join(_RENAMED.get(part, part) for part in name.removeprefix("rwkv.").split(".")): tensor
        for name, tensor in stored.items()
    }


def _check_settings(path: Path, config: dict[str, Any]) -> None:
    if config.get("layer_norm_epsilon", _EPSILON) != _EPSILON:
        raise UserError(f"{path}: layer_norm_epsilon is {config['layer_norm_epsilon']}, here it is always {_EPSILON}")
    wide = config.get("attention_hidden_size")
    if wide is not None and wide != config.get("hidden_size"):
        raise UserError(f"{path}: attention_hidden_size is {wide}, here it is always hidden_size")

"""Any model's weights in 8 bits, in files small enough to carry: a scale for each row of a matrix, the rest in float32.

python recipes/eight_bits.py write MODEL OUT      MODEL's directory to shards in OUT
python recipes/eight_bits.py restore OUT MODEL    and back to a model's directory, rounded
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spikegpt.checkpoint import CONFIG, TOKENIZER, WEIGHTS, resolve, write_directory

SHARD = 15 * 2**20
"""Largest size of a file, in bytes."""


def write_shards(directory: Path, out: Path, largest: int = SHARD) -> Path:
    """Write the model in `directory` to shards in `out`, replacing it; returns `out`."""
    source = resolve(Path(directory))

    def fill(inside: Path) -> None:
        for name in (CONFIG, TOKENIZER):
            shutil.copy(source / name, inside / name)
        shards: list[dict[str, Tensor]] = [{}]
        size = 0
        for name, tensor in _pieces(load_file(source / WEIGHTS), largest):
            if size + tensor.nbytes > largest and shards[-1]:
                shards.append({})
                size = 0
            shards[-1][name] = tensor
            size += tensor.nbytes
        for number, shard in enumerate(shards):
            save_file(shard, inside / f"weights-{number:03d}.safetensors")

    write_directory(Path(out), fill)
    return Path(out)


def restore(shards: Path, out: Path) -> Path:
    """Write a model's directory from shards; returns it."""
    found: dict[str, Tensor] = {}
    for path in sorted(Path(shards).glob("weights-*.safetensors")):
        found.update(load_file(path))
    parts: dict[str, list[Tensor]] = {}
    for key in sorted(found, key=_order):
        name, kind, _ = key.rsplit("|", 2)
        if kind == "whole":
            parts.setdefault(name, []).append(found[key])
        elif kind == "rows":
            parts.setdefault(name, []).append(found[key].float() * found[key.replace("|rows|", "|scale|")])
    tensors = {name: torch.cat(rows) if len(rows) > 1 else rows[0] for name, rows in parts.items()}

    def fill(inside: Path) -> None:
        for name in (CONFIG, TOKENIZER):
            shutil.copy(Path(shards) / name, inside / name)
        save_file(tensors, inside / WEIGHTS)

    write_directory(Path(out), fill)
    return Path(out)


def _pieces(tensors: dict[str, Tensor], largest: int) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors to store: `NAME|rows|0`, `NAME|scale|0`, ... for matrices, `NAME|whole|0` for the rest."""
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            yield f"{name}|whole|0", tensor.float().contiguous()
            continue
        for number, rows in enumerate(tensor.float().split(max(1, largest // (2 * tensor.shape[1])))):
            scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            yield f"{name}|rows|{number}", (rows / scale).round().to(torch.int8)
            yield f"{name}|scale|{number}", scale


def _order(key: str) -> tuple[str, int]:
    name, _, number = key.rsplit("|", 2)
    return name, int(number)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("write", "restore"):
        raise SystemExit((__doc__ or "").strip())
    made = (write_shards if sys.argv[1] == "write" else restore)(Path(sys.argv[2]), Path(sys.argv[3]))
    print(made, json.dumps({path.name: path.stat().st_size for path in sorted(made.iterdir())}))

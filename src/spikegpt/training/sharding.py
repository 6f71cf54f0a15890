"""A model whose weights are sharded over processes (FSDP2, `torch.distributed.fsdp.fully_shard`), and how to gather it.

Each process keeps one shard of every parameter, cut along its first dimension, and gathers a block's parameters while
it computes that block. What is written to disk is read back by any number of processes.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checkpoint import write_tensors
from ..errors import UserError
from ..model.spikegpt import SpikeGPT

_PATTERN = "training-*-of-*.safetensors"


def shard(model: SpikeGPT) -> None:
    """Split the model's parameters over all processes, in place; the process group is there, every copy is the same."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # The state a block returns has views of its input; nothing changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    fully_shard(model.blocks[0].ln0, mesh=mesh)  # pyright: ignore[reportCallIssue, reportArgumentType]
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is this process's shard of one."""
    return hasattr(tensor, "full_tensor")


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be split; all processes must ask."""
    return tensor.full_tensor() if is_shard(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def shard_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a whole tensor, split as `like` is; the tensor itself if that is not split."""
    if not is_shard(like) or tensor.ndim == 0:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # pyright: ignore[reportAttributeAccessIssue]
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def whole_model(model: SpikeGPT, *, keep: bool) -> SpikeGPT | None:
    """A copy that is not split, where `keep`, else None; all processes must ask."""
    copy = None
    if keep:
        with torch.device("meta"):
            copy = SpikeGPT(model.config, backend=model.backend)
        copy.tokenizer = model.tokenizer
        copy.to_empty(device=next(model.parameters()).device)
        for neuron in copy.event_neurons():
            neuron.events_seen.zero_()
    target = copy.state_dict() if copy is not None else {}
    for name, tensor in model.state_dict().items():
        gathered = full(tensor)
        if copy is not None:
            target[name].copy_(gathered)
    return copy


def write_shard(directory: Path, rank: int, world: int, tensors: dict[str, Tensor]) -> Path:
    """Write this process's shards under a hidden name in `directory`; `collect_shards` gives them their own."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f".training-{rank:05d}-of-{world:05d}.safetensors.tmp-00000000"
    local = {name: t.to_local() if is_shard(t) else t for name, t in tensors.items()}  # pyright: ignore[reportAttributeAccessIssue]
    write_tensors(path, local)
    return path


def collect_shards(directory: Path, into: Path) -> None:
    """Move the shards that all processes have written in `directory` to the directory `into`."""
    for path in sorted(directory.glob(".training-*-of-*.safetensors.tmp-00000000")):
        os.replace(path, into / path.name[1:].rpartition(".tmp-")[0])


def read_shards(directory: Path) -> dict[str, Tensor]:
    """The tensors whose shards lie in `directory`, whole; none if there are no shards."""
    paths = sorted(directory.glob(_PATTERN))
    if paths and len(paths) != int(paths[0].stem.rpartition("-")[2]):
        raise UserError(
            f"{directory} has {len(paths)} of the shards that {paths[0].name} belongs to; bring the others too"
        )
    parts: dict[str, list[Tensor]] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    parts.setdefault(name, []).append(file.get_tensor(name))
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} is truncated or no safetensors file ({error}); go back to an older checkpoint"
            ) from None
    return {name: torch.cat(shards) if shards[0].ndim else shards[0] for name, shards in parts.items()}

"""Checkpoints of a run: what it needs to resume to the very same weights (optimiser, random state, place in the data)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..checkpoint import (
    CHECKPOINTS,
    WEIGHTS,
    load_weights,
    read_checkpoint,
    read_config,
    save_checkpoint,
    write_model,
    write_tensors,
)  # fmt: skip
from ..config import TrainConfig
from ..errors import UsageError, UserError
from ..files import remove_leftovers, write_directory, write_json
from ..model.spikegpt import SpikeGPT
from .lock import checkpoint_of
from .optim import lr_at
from .run import Run, described
from .saved import check_tensors, check_values
from .sharding import collect_shards, read_shards, shard_of, write_shard

BEST = "best"
"""Directory of a run where the weights with the least held-out loss are kept."""

# Fields that may change from one part of a run to the next: none of them touches a weight.
_FREE = {
    "train.log_every", "train.eval_every", "train.eval_tokens", "train.save_every", "train.keep",
    "train.recompute", "train.shard",
}  # fmt: skip
# Fields that shape the end of the schedule: they may change while no step taken would have been another.
_ENDING = {"train.steps", "train.decay", "train.lr_min"}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by parameter name: `optimizer.head.weight.exp_avg`."""
    return {
        f"optimizer.{name}.{key}": value if isinstance(value, Tensor) else torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, from whole tensors."""
    names = {parameter: f"optimizer.{name}." for name, parameter in model.named_parameters()}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {
            key.removeprefix(names[parameter]): shard_of(tensor, parameter)
            for key, tensor in tensors.items()
            if key.startswith(names[parameter])
        }
        for index, parameter in enumerate(ordered)
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_tensors(accelerator: Accelerator) -> dict[str, Tensor]:
    """torch's random state in every process, [processes, bytes], known to all of them."""
    states = {"random.cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return {
        name: accelerator.gather(state[None].to(accelerator.device)).cpu()  # pyright: ignore[reportAttributeAccessIssue]
        for name, state in states.items()
    }


def load_random(accelerator: Accelerator, tensors: dict[str, Tensor], seed: int) -> None:
    """The inverse of `random_tensors`; with another number of processes it is seeded anew from `seed`."""
    rank = accelerator.process_index
    if len(tensors["random.cpu"]) != accelerator.num_processes:
        torch.manual_seed(seed + rank)
        return
    torch.set_rng_state(tensors["random.cpu"][rank].clone())
    if accelerator.device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"][rank].clone(), accelerator.device)


def begin_directory(run: Run) -> None:
    """Write into the run's directory what the run is, and clear what a killed process left half-written."""
    write_json(run.out / "train.json", {**run.described, "model": run.model.config.to_dict()})
    remove_leftovers(run.out)
    remove_leftovers(run.out / CHECKPOINTS)


def save(run: Run) -> None:
    """Write a checkpoint, in the main process; after the last step the finished model too. Every process must call it.

    Where the model is sharded, each process writes its own part of the optimiser's state.
    """
    accelerator, model, also = run.accelerator, run.whole(), None
    tensors = random_tensors(accelerator)
    for name, tensor in run.objective.named_carried().items():
        tensors[name] = accelerator.gather(tensor).cpu()  # pyright: ignore[reportAttributeAccessIssue]
    if run.config.shard:
        shards = run.out / CHECKPOINTS
        optimizer = optimizer_tensors(run.model, run.optimizer)
        write_shard(shards, accelerator.process_index, accelerator.num_processes, optimizer)
        accelerator.wait_for_everyone()
        also = partial(collect_shards, shards)
    elif model is not None:
        tensors |= optimizer_tensors(model, run.optimizer)
    if model is not None:
        values = {
            "run": run.described,
            "windows": run.batches.state_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            "last": run.last,
            "losses": run.losses,
            "best": run.best,
            "worse": run.worse,
        }
        save_checkpoint(run.out, run.step, model, tensors=tensors, values=values, keep=run.config.keep, also=also)
        if run.done:
            finish(run, model)
    accelerator.wait_for_everyone()


def keep_best(run: Run, model: SpikeGPT, loss: float) -> None:
    """Keep the model's weights beside the checkpoints if no evaluation had a lower held-out loss; in the main process."""
    if run.best is not None and loss >= run.best:
        run.worse += 1
        return
    run.best, run.worse = loss, 0
    write_directory(run.out / BEST, lambda inside: write_tensors(inside / WEIGHTS, model.state_dict()))


def finish(run: Run, model: SpikeGPT) -> None:
    """Write the run's finished model: the best one if it is kept, which `model` becomes, else the last."""
    if run.config.keep_best and run.best is not None:
        load_weights(model, run.out / BEST, device=next(model.parameters()).device)
    write_model(run.out, model)


def restore(run: Run, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Put the run where `save` wrote the tensors and values that `load_run` gives."""
    load_optimizer(run.model, run.optimizer, tensors)
    run.batches.load_state_dict(values["windows"])
    if run.accelerator.scaler is not None and values["scaler"]:
        run.accelerator.scaler.load_state_dict(values["scaler"])
    load_random(run.accelerator, tensors, run.config.seed + values["step"])
    rows = slice(run.batches.rank * run.batches.batch_size, (run.batches.rank + 1) * run.batches.batch_size)
    carried = {name: tensor[rows] for name, tensor in tensors.items() if name.startswith("carried.")}
    try:
        run.objective.load_carried({name: tensor.to(run.accelerator.device) for name, tensor in carried.items()})
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"the checkpoint of step {values['step']} lacks a carried state ({error}); delete it") from None
    run.step, run.last, run.losses = values["step"], values["last"], values["losses"]
    run.best, run.worse = values["best"], values["worse"]


def load_run(
    out: Path, model: SpikeGPT, config: TrainConfig, identity: dict[str, Any], processes: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the latest checkpoint of the run in `out` into `model`; the trainer's tensors and values.

    UsageError: there is none, or it was written by a run with other settings or data.
    """
    wanted = described(config, identity, processes)
    path = checkpoint_of(out)
    tensors, values = read_checkpoint(path)
    check_values(path, values)
    tensors |= read_shards(path)
    _check_batch(out, values["run"], wanted)
    before = _flat({**values["run"], "model": read_config(path).to_dict()})
    now = _flat({**wanted, "model": model.config.to_dict()})
    free = _FREE | {"processes", "train.batch_size"}  # together they are the batch
    if _same_so_far(values["run"], wanted, values["step"]):
        free |= _ENDING
    for field in sorted(before.keys() | now.keys()):
        if before.get(field) != now.get(field) and field not in free:
            raise UsageError(
                f"cannot resume {out}: {field} is {now.get(field)!r}, but the run began with {before.get(field)!r}; "
                "keep it, or start a new run in another directory"
            )
    check_tensors(path, tensors, model)
    load_weights(model, path, device=next(model.parameters()).device)
    return tensors, values


def _check_batch(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """A run may be resumed with another number of processes if all of them together read the same batches."""
    (was, old), (will, new) = ((run["processes"], run["train"]["batch_size"]) for run in (before, now))
    if was * old == will * new:
        return
    mend = (
        f"give batch_size {was * old // will}" if was * old % will == 0 else f"use a divisor of {was * old} processes"
    )
    raise UsageError(
        f"cannot resume {out}: batch_size is {new} and processes is {will}, but the run began with {was} of batch_size "
        f"{old}; {mend}, so that a step reads the same {was * old} sequences"
    )


def _same_so_far(before: dict[str, Any], now: dict[str, Any], steps: int) -> bool:
    """Whether both schedules give the same learning rate at every step taken: a wsd run may be made longer in time."""
    old, new = (TrainConfig.from_dict(run["train"]) for run in (before, now))
    return new.steps >= steps and all(lr_at(step, old) == lr_at(step, new) for step in range(steps))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat

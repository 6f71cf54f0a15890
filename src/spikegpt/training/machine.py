"""`spikegpt train --auto`: precision, operators, batch and accumulation for the device at hand, each with its reason."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import ops
from ..checkpoint import latest_checkpoint, read_checkpoint
from ..config import ModelConfig, Precision, TrainConfig
from .memory import GB, count_parameters, fitting_batch, memory_of, training_memory
from .saved import check_values

GPU_STEP = 65536
"""Tokens in a step on GPUs: 64 x 1024, what a reproduction of the paper found better and faster than its 12 x 1024."""
CPU_STEP = 4096
"""Tokens in a step on a CPU, where many small steps learn more in an hour than a few large ones."""
USABLE = 0.8
"""Fraction of the free memory that is counted on."""


class Choice(NamedTuple):
    """Settings to train with, and a line about each that was picked."""

    config: TrainConfig
    backend: str
    reasons: list[str]


class Machine(NamedTuple):
    """What a run finds: one of its processes' device and its fraction of the memory."""

    device: torch.device
    free: float
    """Bytes."""
    processes: int
    half: Precision
    """Half-width precision that it multiplies faster in; no: none."""

    @staticmethod
    def found(device: str | None) -> Machine:
        """This machine as `accelerate launch` divides it."""
        processes, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        if device != "cpu" and torch.cuda.is_available():
            there = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            half: Precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
            return Machine(there, memory_of(there), processes, half)
        there = torch.device("cpu")
        return Machine(there, memory_of(there) / local, processes, "bf16" if _cpu_multiplies_bf16() else "no")


def choose(model: ModelConfig, config: TrainConfig, chosen: Collection[str], backend: str, machine: Machine) -> Choice:
    """`config` and `backend` with everything picked that is not among the names in `chosen`, which stay as they are."""
    reasons: list[str] = []
    picked: dict[str, Any] = {}

    def pick(name: str, value: Any, why: str) -> None:
        if name in chosen:
            reasons.append(f"{name} {getattr(config, name)}: as you chose")
        else:
            picked[name] = value
            reasons.append(f"{name} {value}: {why}")

    fast = f"{machine.device.type} multiplies it fastest; weights stay float32"
    pick("precision", machine.half, fast if machine.half != "no" else "this CPU multiplies nothing faster than float32")
    config = dataclasses.replace(config, **picked)
    backend, why = _operators(backend, chosen, machine.device)
    reasons.append(f"backend {backend}: {why}")

    context = config.context or model.context
    step = GPU_STEP if machine.device.type == "cuda" else CPU_STEP
    sequences = max(1, round(step / (context * machine.processes)))
    limit, total = machine.free * USABLE, f"{machine.free / GB:.1f} GB are free on {machine.device}"
    if "batch_size" in chosen:
        batch = config.batch_size
    elif "accumulate" in chosen:
        batch = _largest(model, config, machine.processes, limit, max(1, sequences // config.accumulate))
    else:
        batch = _largest(model, config, machine.processes, limit, sequences)
    recompute = config.recompute or (
        "recompute" not in chosen and not _fits(model, config, batch, machine.processes, limit)
    )
    if recompute != config.recompute:
        config = dataclasses.replace(config, recompute=True)
        reasons.append("recompute True: one sequence's activations do not fit otherwise")
        if "batch_size" not in chosen:
            batch = _largest(model, config, machine.processes, limit, sequences)
    sized = dataclasses.replace(config, batch_size=batch)
    need = training_memory(model, sized, machine.processes).total
    picked.clear()
    pick(
        "batch_size",
        batch,
        f"about {need / GB:.1f} GB with {count_parameters(model)[0] / 1e6:.1f}M parameters; {total}",
    )
    times = max(1, round(sequences / batch))
    tokens = batch * context * machine.processes
    pick("accumulate", times, f"{times} x {tokens:,} tokens are the step of about {step:,} that suits this device")
    if need > limit:
        reasons.append(f"careful: about {need / GB:.1f} GB are needed, and {total}")
    return Choice(dataclasses.replace(config, **picked), backend, reasons)


def as_begun(run: Path, config: TrainConfig, chosen: Collection[str], backend: str, processes: int) -> Choice | None:
    """What a run to be resumed began with, its batch divided among `processes`; None where it has no checkpoint."""
    path = latest_checkpoint(run)
    if path is None:
        return None
    values = read_checkpoint(path)[1]
    check_values(path, values)
    before = values["run"]
    whole = before["train"]["batch_size"] * before["processes"]
    values = {name: before["train"][name] for name in ("precision", "accumulate")} | {"batch_size": whole // processes}
    picked = {name: value for name, value in values.items() if name not in chosen}
    reasons = [f"{name} {value}: as the run began" for name, value in picked.items()]
    return Choice(dataclasses.replace(config, **picked), backend, reasons)


def _operators(backend: str, chosen: Collection[str], device: torch.device) -> tuple[str, str]:
    if "backend" in chosen:
        return backend, "as you chose"
    fast = "triton" if device.type == "cuda" else "native"
    there = ops.available()[fast]
    return (fast, f"the fast operators of {device.type}") if there is True else ("reference", f"slow, but {there}")


def _fits(model: ModelConfig, config: TrainConfig, batch: int, processes: int, limit: float) -> bool:
    return training_memory(model, dataclasses.replace(config, batch_size=batch), processes).total <= limit


def _largest(model: ModelConfig, config: TrainConfig, processes: int, limit: float, sequences: int) -> int:
    """The largest divisor of `sequences` that fits; 1 if none does."""
    if _fits(model, config, sequences, processes, limit):
        return sequences
    return fitting_batch(model, config, processes, limit, below=sequences) or 1


def _cpu_multiplies_bf16() -> bool:
    asks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(ask is not None and ask() for ask in asks)

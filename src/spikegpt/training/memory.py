"""Memory that training takes, by formula. B batch, T tokens, C channels, H hidden width, L layers, V vocabulary."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import torch

from ..config import ModelConfig, TrainConfig
from ..model.spikegpt import SpikeGPT

GB = 1e9
_SLACK = 1.1
"""What an allocator takes beyond what is asked of it."""


class Memory(NamedTuple):
    """Bytes in one process at the worst moment of a training step."""

    weights: float
    """Parameters in float32, gradients, two moments of Adam, and half-width copies of the matrices under autocast."""
    activations: float
    """What the blocks keep for the backward pass."""
    logits: float
    """The head's output, its gradient and what the loss keeps."""

    @property
    def total(self) -> float:
        """All of it, with the allocator's slack."""
        return _SLACK * sum(self)


def training_memory(model: ModelConfig, config: TrainConfig, processes: int = 1) -> Memory:
    """Memory of one process that trains `model` as `config` says, on kernels that fuse what can be (GPU, native CPU)."""
    parameters, matrices = count_parameters(model)
    width = 4 if config.precision == "no" else 2
    copies = matrices * width if width < 4 else 0
    tokens = config.batch_size * (config.context or model.context)
    block = block_bytes(model, width)
    kept = (model.n_layer * 4 * model.n_embd + block) if config.recompute else (model.n_layer + 1) * block
    share = processes if config.shard else 1
    gathered = 4 * parameters / model.n_layer if config.shard else 0
    logit = 8 + (2 * width if width < 4 else 0)
    return Memory(
        weights=16 * parameters / share + gathered + copies,
        activations=tokens * kept,
        logits=tokens * (logit * model.vocab_size + 16 * model.n_embd),
    )


def block_bytes(model: ModelConfig, width: int) -> float:
    """Bytes that a block keeps of one token; `width` bytes in a value that a matrix reads or writes.

    The norms keep their input and output in float32 (16 C); each matrix its input; the WKV k, v and the gate; the
    channel mix both factors of its product and the hidden layer before relu^2; scans a state every 16 tokens. Neurons in
    front of the matrices keep a byte of each input, and of events of 4 bytes one.
    """
    channels, hidden = model.n_embd, model.hidden
    read, written = 6 * channels + hidden, 5 * channels + hidden
    kept = 18 * channels + width * written
    if model.spikes == "before":
        return kept + read * (2 if width == 4 else width + 1)
    return kept + width * read + (2 * channels * width if model.spikes == "after" else 0)


@functools.cache
def count_parameters(model: ModelConfig) -> tuple[int, int]:
    """Parameters, and those of them in matrices that every token is multiplied with."""
    with torch.device("meta"):
        made = SpikeGPT(model)
    return sum(parameter.numel() for parameter in made.parameters()), made.matrix_parameters()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def memory_of(device: torch.device) -> float:
    """Bytes that the device has free for training."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 * GB


def advise(model: ModelConfig, config: TrainConfig, device: torch.device, processes: int) -> str:
    """One line for a run that did not fit: what it needs, and settings of the same mathematics that need less."""
    need, has = training_memory(model, config, processes).total, memory_of(device)
    size = f"a batch of {config.batch_size} x {config.context or model.context} tokens needs about {need / GB:.1f} GB"
    limit = min(has, need) * 0.9
    for smaller in (config, dataclasses.replace(config, recompute=True)):
        batch = fitting_batch(model, smaller, processes, limit, below=config.batch_size)
        if batch is not None:
            steps = config.accumulate * config.batch_size // batch
            extra = " --recompute" if smaller.recompute and not config.recompute else ""
            with_it = dataclasses.replace(smaller, batch_size=batch)
            there = training_memory(model, with_it, processes).total / GB
            break
    else:
        return f"out of memory on {device}: {size}, and not even one sequence fits; use a shorter context or a smaller preset"
    return (
        f"out of memory on {device}: {size}; try --batch-size {batch} --accumulate {steps}{extra}, the same step in about "
        f"{there:.1f} GB"
    )


def fitting_batch(model: ModelConfig, config: TrainConfig, processes: int, limit: float, *, below: int) -> int | None:
    """The largest divisor of `below` sequences, itself left out, whose step fits into `limit` bytes; None: not even one."""
    divisors = [batch for batch in range(below - 1, 0, -1) if below % batch == 0]
    tries = ((batch, dataclasses.replace(config, batch_size=batch)) for batch in divisors)
    return next((batch for batch, made in tries if training_memory(model, made, processes).total <= limit), None)

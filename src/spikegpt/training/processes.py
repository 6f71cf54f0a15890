"""Devices and processes of a training run: what accelerate provides, and the few things it does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import nn

from ..config import TrainConfig
from ..errors import UsageError
from ..model.spikegpt import SpikeGPT

_PLAIN = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


def make_accelerator(config: TrainConfig, device: str | None) -> Accelerator:
    """The accelerator of a run on `device` (None: a GPU if there is one); a UsageError where settings cannot work."""
    # accelerate keeps the device and precision of the first Accelerator of a process; each run here has its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    # The operators have kernels for the CPU and for CUDA; anything else would run their reference loops.
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if device not in (None, "cpu", "cuda") or (device == "cuda" and on_cpu):
        raise UsageError(f"device={device!r} is not here; leave it out to train on what there is")
    if on_cpu and config.precision == "fp16":
        raise UsageError("precision fp16 needs a GPU; on a CPU use bf16 or no")
    if config.shard and config.precision == "fp16":
        raise UsageError("shard and precision fp16 do not go together; use bf16")
    # Buffers are the same in every process as it is: thresholds follow the events of all of them.
    ours = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(mixed_precision=config.precision, cpu=on_cpu, kwargs_handlers=[ours])
    if accelerator.distributed_type not in _PLAIN:
        kind = accelerator.distributed_type.value
        raise UsageError(f"accelerate is set to {kind}; launch plain processes (--multi_gpu), and split with --shard")
    if config.shard and accelerator.num_processes == 1:
        raise UsageError(
            "shard splits a model over processes, and there is one: start with accelerate launch --multi_gpu"
        )
    return accelerator


@contextlib.contextmanager
def gathering(
    accelerator: Accelerator, wrapped: nn.Module, model: SpikeGPT, *, sharded: bool, last: bool
) -> Iterator[None]:
    """Processes exchange gradients only in the last batch of a step."""
    if sharded:
        model.set_requires_gradient_sync(last)  # pyright: ignore[reportCallIssue]
    with contextlib.nullcontext() if last or sharded else accelerator.no_sync(wrapped):
        yield


def share_events(accelerator: Accelerator, model: SpikeGPT) -> None:
    """Let thresholds follow the events of all processes."""
    neurons = model.event_neurons()
    if neurons and accelerator.num_processes > 1:
        seen: Any = accelerator.reduce(torch.stack([neuron.events_seen for neuron in neurons]), "sum")
        for neuron, events in zip(neurons, seen, strict=True):
            neuron.events_seen.copy_(events)

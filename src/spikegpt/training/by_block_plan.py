"""What `spikify_by_block` will need for a model of some shape: bytes, tokens and operations, by formula."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import read_config, resolve
from ..config import ModelConfig, TrainConfig
from .memory import block_bytes, count_parameters, training_memory
from .parts import part_names, weights_of
from .residuals import DTYPE
from .spikify import neurons_of

HELD_OUT = 1 / 8
"""Batches to measure on, over those to train on."""


@dataclass(frozen=True)
class Plan:
    """Of a run over all parts."""

    parts: int
    weights: int
    """In all matrices."""
    memory: float
    """Bytes while the largest part is trained: the original's and the student's, gradients, Adam's two moments,
    activations or logits."""
    memory_end_to_end: float
    """Bytes that training all parts at once would take."""
    disk: int
    """Bytes of residuals, at the worst moment, and of the finished parts."""
    tokens: int
    """Read by the training of each part."""
    operations: float
    """Of all parts: for a weight and token 6 in training and 2 of the original beside it, and 4 to write what the next
    part reads."""

    def hours(self, rate: float) -> float:
        """At `rate` operations a second, from start to end."""
        return self.operations / rate / 3600

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def plan(
    source: str | os.PathLike[str], activity: float, event: dict[str, Any], config: TrainConfig, tokens: int
) -> Plan:
    """What `by_block.spikify_by_block` will need with these arguments; `source` is a model directory."""
    return plan_for(event_config(read_config(resolve(Path(source))), activity, event), config, tokens)


def event_config(original: ModelConfig, activity: float, event: dict[str, Any]) -> ModelConfig:
    """The shape of the event-driven model that a continuous one becomes."""
    neurons = neurons_of(original, activity, event)
    return ModelConfig.from_dict({**original.to_dict(), "spikes": "before", "event": neurons})


def plan_for(student: ModelConfig, config: TrainConfig, tokens: int) -> Plan:
    """The plan for an event-driven model of that shape, trained on `tokens` of text."""
    names = part_names(student)
    weights = {name: weights_of(student, name) for name in names}
    context = config.context or student.context
    batch = config.batch_size * context
    width = 2 if config.precision == "bf16" else 4
    copies = 2 * width if width < 4 else 0  # of the original's and of the student's matrices
    logits = batch * student.vocab_size * (8 + 2 * width)
    blocks = max(weights[name] for name in names if name != "head")
    read = config.steps * batch
    kept = round(tokens * (1 + HELD_OUT))
    parameters, _ = count_parameters(student)
    return Plan(
        parts=len(names),
        weights=sum(weights.values()),
        memory=max(
            blocks * (20 + copies) + batch * block_bytes(student, width),
            weights["head"] * (20 + copies) + logits,
        ),
        memory_end_to_end=training_memory(student, config).total + 4 * parameters,
        disk=4 * kept * student.n_embd * DTYPE.itemsize + 4 * parameters,
        tokens=read,
        operations=float(sum(weights.values())) * (8 * read + 4 * kept),
    )

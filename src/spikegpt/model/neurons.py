"""Neurons as modules: pure steps `(input, membrane) -> (spikes, membrane)` that forward hooks can watch.

B batch, T time (one token is one step of every neuron), C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..config import EventConfig, ModelConfig

LEARNT_FROM = 0.02
"""Where a learned leak begins if its setting is 0, which no logit stands for."""


class Neuron(nn.Module):
    """Base of every neuron; `forward` returns spikes [B, T, C] and the membrane [B, C], or None if it keeps none."""

    has_membrane = False


class SpikeEmbedding(Neuron):
    """H(z) = 1 if z >= 0 else 0, with the ATan surrogate gradient; no memory."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return ops.spike(x, self.alpha), None


class LIF(Neuron):
    """Leaky integrate-and-fire with a hard reset; see `ops.lif`."""

    has_membrane = True

    def __init__(self, config: ModelConfig, backend: str) -> None:
        super().__init__()
        self.tau, self.threshold, self.alpha = config.tau, config.threshold, config.surrogate_alpha
        self.backend = backend

    def forward(self, x: Tensor, membrane: Tensor | None) -> tuple[Tensor, Tensor]:
        return ops.lif(x, membrane, **self._how())

    def add_to(self, residual: Tensor, x: Tensor, membrane: Tensor | None) -> tuple[Tensor, Tensor]:
        """residual + spikes, and the membrane: in one pass over memory unless a hook watches the spikes."""
        if self._forward_hooks:
            spikes, after = self(x, membrane)
            return residual + spikes, after
        return ops.lif_add(x, residual, membrane, **self._how())

    def _how(self) -> dict[str, Any]:
        return {"tau": self.tau, "threshold": self.threshold, "alpha": self.alpha, "backend": self.backend}


class EventNeuron(Neuron):
    """Turns the input of a matrix into small integers, most of them 0; see `ops.event`.

    `threshold` follows the fraction of neurons that is meant to fire: each training step adds
    `gain * (rate - target)` to its logarithm (`adapt`). `unit` is what an event of 1 stands for.
    """

    threshold: Tensor
    unit: Tensor
    events_seen: Tensor
    gain = 0.5
    floor = 0.1
    """Lowest threshold, in mean magnitudes of the input."""
    sampled = 4
    """One token in so many is counted while training: enough to know the rate, and cheap."""
    saturation = 0.002
    """Fraction of neurons allowed at the largest event before the unit grows."""

    def __init__(self, width: int, fan_out: int, config: EventConfig, *, signed: bool, backend: str) -> None:
        super().__init__()
        self.width, self.fan_out = width, fan_out
        self.config, self.backend = config, backend
        self.aim_for(config.activity, config.start_activity or config.activity)
        self.set_progress(1.0)
        self.signed = signed and config.signed
        self.has_membrane = config.has_membrane
        self.register_buffer("threshold", torch.ones(1))
        self.register_buffer("unit", torch.full((1,), 1 / config.resolution))
        self.register_buffer("events_seen", torch.zeros(4), persistent=False)
        if config.has_membrane:
            start = torch.full((width,), _logit(config.leak or LEARNT_FROM))
            if config.learn_leak:
                self.leak_logit = nn.Parameter(start)
            else:
                self.register_buffer("leak_logit", start)

    def aim_for(self, activity: float, start_activity: float) -> None:
        """Set the fraction of neurons meant to fire at the end of the training and at its start."""
        self.activity, self.start_activity = activity, start_activity

    def set_progress(self, progress: float) -> None:
        """Say which fraction of the training is completed, in [0, 1]: targets and jumps depend on it."""
        self.progress = progress
        self.smallest_in_training = self.config.smallest if progress >= self.config.jump_from else 1

    def leak(self) -> Tensor | None:
        """[C] fraction of the membrane kept from token to token, or None if there is no memory."""
        return torch.sigmoid(self.leak_logit) if self.has_membrane else None

    def forward(self, x: Tensor, membrane: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        smallest = self.smallest_in_training if self.training else self.config.smallest
        events, after = ops.event(
            x, self.threshold.expand(self.width), self.unit.expand(self.width), self.leak(), membrane,
            levels=self.config.levels, smallest=smallest, signed=self.signed, reset=self.config.reset,
            window=self.config.window, dtype=ops.matrix_dtype(x), backend=self.backend,
        )  # fmt: skip
        if self.training:
            self._count(x.detach()[:, :: self.sampled], events.detach()[:, :: self.sampled])
        return events, after if self.has_membrane else None

    def _count(self, x: Tensor, events: Tensor) -> None:
        self.events_seen[:2] += ops.tally(events, self.config.levels, backend=self.backend)
        self.events_seen[2] += events.numel()
        self.events_seen[3] += x.abs().sum()

    @torch.no_grad()
    def adapt(self, seen: Sequence[float]) -> None:
        """Move the threshold towards the target activity, from the events `seen` since the last call.

        `seen` holds the values of `events_seen`: events, events of the largest size, neuron-steps, and the sum of the
        inputs' magnitudes.
        """
        fired, largest, neurons, size = seen
        if neurons == 0:
            return
        wanted = self.threshold * math.exp(self.gain * (fired / neurons - self.target()))
        # Where most inputs are exactly 0 (after relu^2), no threshold may reach the target: it must not sink to 0.
        wanted = wanted.clamp(min=self.floor * size / neurons)
        self.unit *= wanted / self.threshold
        self.threshold.copy_(wanted)
        if self.config.levels > 1:
            stretch = math.exp(max(-0.02, min(0.05, 5 * (largest / neurons - self.saturation))))
            self.unit.copy_(torch.maximum(self.unit * stretch, self.threshold / self.config.resolution))
        self.events_seen.zero_()

    def target(self) -> float:
        """Fraction of neurons meant to fire at this point of the training: it falls from `start_activity` to `activity`."""
        return self.activity * (self.start_activity / self.activity) ** max(0.0, 1 - self.progress / self.config.ramp)


def adapt(neurons: Sequence[EventNeuron]) -> None:
    """Let the thresholds of neurons follow their target activity; called after each optimiser step."""
    if neurons:
        seen = torch.stack([neuron.events_seen for neuron in neurons]).tolist()  # waits for a GPU once, not once each
        for neuron, counts in zip(neurons, seen, strict=True):
            neuron.adapt(counts)


def _logit(p: float) -> float:
    return math.log(p / (1 - p))

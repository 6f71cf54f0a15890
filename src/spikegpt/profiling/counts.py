"""What a model does while it reads a text: spikes and synaptic operations, counted from what reaches each matrix.

A product's input counts as spikes only if the very tensor that the matrix reads is one of small integers. Everything
else is floats, whatever the model calls it, and its products are multiply-accumulates.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..config import EventConfig, ModelConfig
from ..data.encode import encoded
from ..errors import UsageError, UserError
from ..evaluation import Report
from ..model.meter import LayerActivity, SiteCounts
from ..model.protocol import EventCounter, LanguageModel, Meter, evaluating, tokenizer_of
from ..model.sites import Site, sites_by_neuron
from ..model.spikegpt import SpikeGPT
from .elementwise import Work, elementwise

Kind = Literal["binary", "ternary", "graded", "float"]
"""What a matrix read: 0 and 1; -1, 0 and 1; integers of at most `LARGEST`; or anything else."""
LARGEST = 15
"""Largest event: 4 bits and a sign."""
_KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Product:
    """One matrix over everything that was read. All counts are sums over `tokens`."""

    name: str
    kind: Kind
    inputs: int
    outputs: int
    bits: int
    """Width of the weights that were read."""
    tokens: int
    nonzero: int
    """Inputs that were not zero."""
    units: int
    """Sum of the events' sizes: spikes after the expansion of an event of n into n unit spikes."""
    bit_spikes: int | None
    """Ones among the events' bits: spikes after the expansion over bit-planes; None where it was not counted."""
    clipped: int
    """Events of the largest size that the neuron has, which may have lost some; 0 where there is no other size."""
    connected: int | None
    """Non-zero inputs x non-zero weights; None where the weights cannot be seen."""

    @property
    def is_spiking(self) -> bool:
        """Whether the matrix read spikes."""
        return self.kind != "float"

    @property
    def events(self) -> int:
        """Spikes, whatever their size; 0 where floats were read."""
        return self.nonzero if self.is_spiking else 0

    @property
    def dense(self) -> int:
        """Multiply-accumulates of the same product without events."""
        return self.tokens * self.inputs * self.outputs

    @property
    def ac(self) -> int:
        """Effective accumulates: one for every output of every event."""
        return self.events * self.outputs

    @property
    def mac(self) -> int:
        """Multiply-accumulates: every weight, every token, where floats are read. Zeros among the floats are not skipped."""
        return 0 if self.is_spiking else self.dense

    @property
    def weights_read(self) -> int:
        """Weights that had to be read, each token on its own."""
        return self.ac + self.mac

    @property
    def activity(self) -> float:
        """Fraction of the weights that were read."""
        return self.weights_read / self.dense

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, per token."""
        per_token = {
            "events": self.events, "unit_spikes": self.units if self.is_spiking else 0, "bit_spikes": self.bit_spikes,
            "clipped": self.clipped, "ac": self.ac, "ac_unit_spikes": self.units * self.outputs,
            "ac_bit_spikes": None if self.bit_spikes is None else self.bit_spikes * self.outputs,
            "mac": self.mac, "dense": self.dense,
        }  # fmt: skip
        return {
            "name": self.name, "reads": self.kind, "inputs": self.inputs, "outputs": self.outputs, "bits": self.bits,
            "activity": self.activity, "nonzero_inputs": self.nonzero / (self.tokens * self.inputs),
            **{name: None if value is None else value / self.tokens for name, value in per_token.items()},
            "bytes_read": bytes_by_width(self.weights_read / self.tokens),
        }  # fmt: skip


def bytes_by_width(weights: float) -> dict[str, float]:
    """Bytes of so many weights, by their width."""
    return {"float32": 4 * weights, "8-bit": weights, "4-bit": weights / 2}


class ProductCounter:
    """Counts what every `nn.Linear` of a module reads inside a `with` block.

    `levels` is the largest event that its neurons can make.
    """

    def __init__(self, module: nn.Module, levels: int = LARGEST) -> None:
        self._matrices = {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear)}
        self._levels = levels
        self._tallies: dict[str, _Tally] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> ProductCounter:
        for name, matrix in self._matrices.items():
            tally = self._tallies[name] = _Tally(matrix.in_features, self._levels)
            self._handles.append(matrix.register_forward_pre_hook(tally.see))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def products(self) -> list[Product]:
        """One row per matrix that was used, in the order of the module."""
        return [tally.product(name, self._matrices[name]) for name, tally in self._tallies.items() if tally.tokens]


class _Tally:
    """The running counts of one matrix."""

    def __init__(self, inputs: int, levels: int) -> None:
        self._levels = levels
        self.tokens = self.units = self.bit_spikes = self.clipped = self.kind = 0
        self.fired = torch.zeros(inputs, dtype=torch.int64)

    def see(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach().flatten(0, -2)
        self.tokens += len(x)
        self.fired += torch.count_nonzero(x, dim=0).cpu()
        kind = _kind(x)
        self.kind = max(self.kind, _KINDS.index(kind))
        if kind == "float":
            return
        size = x.abs().to(torch.uint8)
        self.units += int(size.sum(dtype=torch.int64))
        self.bit_spikes += sum(int(((size >> bit) & 1).sum(dtype=torch.int64)) for bit in range(LARGEST.bit_length()))
        self.clipped += int((size >= self._levels).sum()) if self._levels > 1 else 0

    def product(self, name: str, matrix: nn.Linear) -> Product:
        kind = _KINDS[self.kind]
        spiking = kind != "float"
        connections = torch.count_nonzero(matrix.weight.detach(), dim=0).cpu()
        return Product(
            name, kind, matrix.in_features, matrix.out_features, 32, self.tokens, int(self.fired.sum()),
            self.units if spiking else 0, self.bit_spikes if spiking else 0, self.clipped if spiking else 0,
            int((self.fired * connections).sum()),
        )  # fmt: skip


def _kind(x: Tensor) -> Kind:
    if not bool((x == x.round()).all()) or bool((x.abs() > LARGEST).any()):
        return "float"
    if bool((x.abs() > 1).any()):
        return "graded"
    return "ternary" if bool((x < 0).any()) else "binary"


@dataclass(frozen=True)
class Profile:
    """Everything that was counted while a model read `tokens` tokens."""

    config: ModelConfig
    tokens: int
    products: list[Product]
    neurons: list[LayerActivity]
    """Rates, dead and saturated neurons of every layer."""
    elementwise: list[Work]
    """Per token, from the formulas of `operations`."""
    footprint: int | None
    """Bytes of parameters and buffers in memory; None where they cannot be seen."""
    connection_sparsity: float | None
    """Fraction of the matrices' weights that are zero; None where they cannot be seen."""

    def total(self, count: str) -> float:
        """Sum of a `Product`'s count over all products, per token."""
        return sum(getattr(product, count) for product in self.products) / self.tokens

    @property
    def activity(self) -> float:
        """Fraction of all weights that were read; 1 where every product reads floats."""
        return self.total("weights_read") / self.total("dense")

    @property
    def firing_rate(self) -> float:
        """Fraction of neuron-steps with a spike; 0 without neurons."""
        neurons = sum(layer.neurons for layer in self.neurons)
        return sum(layer.rate * layer.neurons for layer in self.neurons) / neurons if neurons else 0.0

    @property
    def membrane_updates(self) -> int:
        """Membranes written per token."""
        event = self.config.event
        return sum(
            layer.neurons
            for layer in self.neurons
            if layer.name != "emb_spike" and (event is None or event.has_membrane)
        )

    def expanded(self, count: str) -> float | None:
        """Accumulates per token once every event is expanded into `units` or `bit_spikes`; None where not counted."""
        counts = [getattr(product, count) for product in self.products if product.is_spiking]
        if None in counts:
            return None
        spiking = (product for product in self.products if product.is_spiking)
        return sum(n * product.outputs for n, product in zip(counts, spiking, strict=True)) / self.tokens

    def neurobench(self) -> dict[str, Any]:
        """The counts under NeuroBench's names and by its rules, a token being a sample (docs/energy.md)."""
        ternary = [product.kind in ("binary", "ternary") for product in self.products]

        def effective(spiking: bool) -> float:
            chosen = (product for product, is_one in zip(self.products, ternary, strict=True) if is_one == spiking)
            return sum(p.nonzero * p.outputs if p.connected is None else p.connected for p in chosen) / self.tokens

        return {
            "Footprint": self.footprint,
            "ConnectionSparsity": self.connection_sparsity,
            "ActivationSparsity": 1 - self.firing_rate if self.neurons else 0.0,
            "SynapticOperations": {
                "Effective_MACs": effective(False),
                "Effective_ACs": effective(True),
                "Dense": self.total("dense"),
            },
            "MembraneUpdates": self.membrane_updates,
        }


@torch.inference_mode()
def profile(
    model: LanguageModel,
    data: Sequence[Path] | np.ndarray,
    *,
    tokens: int | None = None,
    chunk: int = 256,
    report: Report | None = None,
) -> Profile:
    """Count while `model` reads `data`, files or ids [N], as one text: at most `tokens` of it, `chunk` at a time.

    The model is a `SpikeGPT` or an `engine.EventModel`, whose own counters are read. `report` hears how many of how
    many tokens are read. UsageError for `tokens` or `chunk` below 1, UserError where there is no text.
    """
    if chunk < 1 or (tokens is not None and tokens < 1):
        raise UsageError(f"tokens={tokens} and chunk={chunk} must be above zero")
    if not isinstance(data, np.ndarray):
        with encoded(data, tokenizer_of(model), limit=tokens) as text:
            return profile(model, text.ids, chunk=chunk, report=report)
    ids = data[:tokens]
    if not len(ids):
        raise UserError("there is no text to profile")
    event = model.config.event
    counter = ProductCounter(model, event.levels if event else LARGEST) if isinstance(model, SpikeGPT) else None
    state = None
    with evaluating(model), model.meter() as meter, counter or nullcontext():
        for start in range(0, len(ids), chunk):
            part = torch.from_numpy(ids[start : start + chunk].astype(np.int64))
            _, state = model(part[None].to(model.device), state)
            if report is not None:
                report(min(start + chunk, len(ids)), len(ids))
    products = counter.products() if counter else _engine_products(model.config, meter)
    seen = isinstance(model, SpikeGPT)
    return Profile(
        model.config, len(ids), products, meter.layers(), elementwise(model.config),
        _footprint(model) if seen else None, _connection_sparsity(model) if seen else None,
    )  # fmt: skip


def _engine_products(config: ModelConfig, meter: Meter) -> list[Product]:
    """One row per matrix from the engine's own counters; it has no histogram of sizes, so no bits."""
    assert isinstance(meter, EventCounter) and config.event is not None
    table = sites_by_neuron(config)
    return [_from_engine(counts, table[counts.name], config.event) for counts in meter.counts()]


def _from_engine(counts: SiteCounts, site: Site, event: EventConfig) -> Product:
    signed = event.signed and site.signed
    kind: Kind = "graded" if counts.units > counts.active else "ternary" if signed and counts.active else "binary"
    return Product(
        site.name, kind, counts.inputs, counts.outputs, counts.bits, counts.steps, counts.active, counts.units, None,
        counts.saturated if event.levels > 1 else 0, None,
    )  # fmt: skip


def _footprint(model: nn.Module) -> int:
    tensors = itertools.chain(model.parameters(), model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _connection_sparsity(model: nn.Module) -> float:
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)

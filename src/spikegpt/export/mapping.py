"""What a chip would have to hold and to do for an event-driven model: cores, messages, host traffic, published energy.

A matrix is split over cores by its outputs: a core holds whole columns. Counts come from execution (`profiling.profile`).
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..errors import UsageError, UserError
from ..model.sites import sites
from ..profiling.counts import Product

CHIPS = ("loihi1", "loihi2", "spinnaker2")
COSTS = ("synapse", "update", "spike", "message")
HOST_INPUT_BYTES, HOST_SUM_BYTES = 2, 4
"""Of a value that the host sends to a neuron, and of a sum that it gets back."""


@dataclass(frozen=True)
class Chip:
    """Limits of a chip, from a TOML file."""

    name: str
    cores: int
    core_bytes: int
    """Memory of a core for weights."""
    core_neurons: int
    """Outputs that a core can sum up."""
    core_axons: int
    """Most inputs of a core, and most targets of an input."""
    weight_bits: int
    payload_bits: int
    """Bits of a spike's payload, sign included; 0: spikes are binary."""
    source: str
    """Where these numbers are from."""
    energy_pj: Mapping[str, float] | None = None
    """pJ of a synaptic operation, a neuron's update, a spike and a message; None where nothing is published."""


@dataclass(frozen=True)
class Placed:
    """One matrix on the chip; events and messages are per token."""

    name: str
    inputs: int
    outputs: int
    cores: int
    bytes: int
    """Of weights, on all its cores."""
    events: float
    units: float
    """Spikes after the expansion of an event of n into n unit spikes."""
    spikes: float
    """What this chip sends: events, or unit spikes where spikes are binary."""
    messages: float
    """Spikes times the cores that hold their targets."""
    synaptic_operations: float
    energy_uj: Mapping[str, float] | None
    """By kind of cost; None where nothing is published."""


@dataclass(frozen=True)
class Map:
    """A model on a chip."""

    chip: Chip
    tokens: int
    """Read for the counts."""
    placed: Sequence[Placed]
    payload_bits: int
    """What an event of this model needs, sign included."""
    host_bytes_in: int
    """To the chip, per token: inputs of neurons, 16 bits each."""
    host_bytes_out: int
    """From the chip, per token: sums, 32 bits each."""
    problems: Sequence[str]
    """What does not fit; empty where the model does."""

    @property
    def cores(self) -> int:
        """Cores for all matrices."""
        return sum(each.cores for each in self.placed)

    @property
    def fill(self) -> float:
        """Fraction of the used cores' memory that weights take."""
        return sum(each.bytes for each in self.placed) / (self.cores * self.chip.core_bytes)

    @property
    def energy_uj(self) -> float | None:
        """Of the products, uJ a token; None where no costs are published."""
        costs = [each.energy_uj for each in self.placed]
        return None if any(cost is None for cost in costs) else sum(sum(cost.values()) for cost in costs if cost)

    def total(self, what: str) -> float:
        """Sum of a field over all matrices."""
        return sum(getattr(each, what) for each in self.placed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        fields = ("events", "units", "spikes", "messages", "synaptic_operations")
        return dataclasses.asdict(self) | {
            "cores": self.cores, "fill": self.fill, "energy_uj": self.energy_uj, "on_host": list(ON_HOST),
            "per_token": {name: self.total(name) for name in fields},
        }  # fmt: skip


ON_HOST = (
    "embedding and norms", "token shift", "WKV average (a division and two exponentials a channel)", "gates (sigmoid)",
    "residual", "choice of the next token",
)  # fmt: skip
"""What no chip's file here has a primitive for."""


def load_chip(name: str) -> Chip:
    """One of `CHIPS`, or a TOML file; UserError for a limit that is missing or no positive number."""
    if name in CHIPS:
        text = resources.files("spikegpt.export.chips").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"no chip {name!r}: neither one of {', '.join(CHIPS)} nor a file ({error.strerror})"
            ) from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name} is no TOML: {error}") from None
    wanted = {field.name for field in dataclasses.fields(Chip)} - {"energy_pj"}
    if missing := sorted(wanted - values.keys()):
        raise UserError(f"the chip {name} says no {', '.join(missing)}; docs/hardware.md has an example")
    if unknown := sorted(values.keys() - wanted - {"energy_pj"}):
        raise UserError(f"the chip {name} has unknown entries: {', '.join(unknown)}")
    for key in sorted(wanted - {"name", "source"}):
        least = 0 if key == "payload_bits" else 1
        if type(values[key]) is not int or values[key] < least:
            raise UserError(f"the chip {name}: {key} = {values[key]!r} must be a whole number of at least {least}")
    costs = values.get("energy_pj")
    if costs is not None and (
        set(costs) != set(COSTS) or not all(isinstance(cost, (int, float)) for cost in costs.values())
    ):
        raise UserError(f"the chip {name}: energy_pj must have {', '.join(COSTS)}, each a number of pJ")
    return Chip(**values)


def map_model(config: ModelConfig, products: Sequence[Product], chip: Chip) -> Map:
    """Lay the matrices of an event-driven model out on a chip; `products` are what was counted."""
    if config.event is None:
        raise UsageError(
            f'spikes="{config.spikes}": the products of this model read floats, so all of them stay on the host; '
            "map an event-driven model"
        )
    placed = [_place(product, chip) for product in products]
    payload = math.ceil(math.log2(config.event.levels + 1)) + int(config.event.signed)
    return Map(chip, products[0].tokens, placed, payload, *_traffic(config), _problems(placed, payload, products, chip))


def _place(product: Product, chip: Chip) -> Placed:
    per_output = product.inputs * product.bits / 8
    outputs_a_core = max(1, min(int(chip.core_bytes // per_output), chip.core_neurons))
    cores = math.ceil(product.outputs / outputs_a_core)
    events, units = product.events / product.tokens, product.units / product.tokens
    spikes = events if chip.payload_bits else units
    operations, messages = spikes * product.outputs, spikes * cores
    costs = chip.energy_pj
    energy = None if costs is None else {
        "synapse": operations * costs["synapse"] / 1e6, "update": product.outputs * costs["update"] / 1e6,
        "spike": spikes * costs["spike"] / 1e6, "message": messages * costs["message"] / 1e6,
    }  # fmt: skip
    return Placed(
        product.name, product.inputs, product.outputs, cores, math.ceil(product.outputs * per_output), events, units,
        spikes, messages, operations, energy,
    )  # fmt: skip


def _traffic(config: ModelConfig) -> tuple[int, int]:
    """Bytes a token to the chip and back; between `ffn.key` and `ffn.value` the host has nothing to do."""
    into = sum(site.inputs for site in sites(config) if site.kind != "ffn.value")
    back = sum(site.outputs for site in sites(config) if site.kind != "ffn.key")
    return into * HOST_INPUT_BYTES, back * HOST_SUM_BYTES


def _problems(placed: Sequence[Placed], payload: int, products: Sequence[Product], chip: Chip) -> list[str]:
    found = []
    if (cores := sum(each.cores for each in placed)) > chip.cores:
        found.append(f"{cores} cores are needed, {chip.name} has {chip.cores}: {math.ceil(cores / chip.cores)} chips")
    for what, sizes in (("fan-in", [each.inputs for each in placed]), ("fan-out", [each.outputs for each in placed])):
        if max(sizes) > chip.core_axons:
            found.append(f"{what} {max(sizes)} passes the limit of {chip.core_axons}")
    if max(product.bits for product in products) > chip.weight_bits:
        found.append(f"weights of {max(product.bits for product in products)} bits, {chip.name} has {chip.weight_bits}")
    if any(each.inputs * product.bits / 8 > chip.core_bytes for each, product in zip(placed, products, strict=True)):
        found.append(f"the weights of one output do not fit a core of {chip.core_bytes} bytes")
    if 0 < chip.payload_bits < payload:
        found.append(f"events need {payload} bits, the payload of {chip.name} has {chip.payload_bits}")
    return found

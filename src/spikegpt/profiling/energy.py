"""What a profile costs under published energies of operations: several accountings of the same run, side by side.

Picojoules. The tables are of one 45 nm process; they say how costs compare, not what a device draws (docs/energy.md).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..config import ModelConfig
from .counts import Product, Profile, bytes_by_width
from .elementwise import Operations, dense_twin, elementwise, floats_moved


@dataclass(frozen=True)
class CostTable:
    """Energy of an operation, in pJ. Elementwise work is in float32 under every table."""

    name: str
    bits: int
    """Width of the weights."""
    mac: float
    ac: float
    source: str
    multiplication: float = 3.7
    addition: float = 0.9
    """Of an addition or a comparison."""
    division: float = 26.3
    exponential: float = 36.8

    def elementwise(self, operations: Operations) -> float:
        """Energy of elementwise work."""
        return (
            operations.multiplications * self.multiplication
            + (operations.additions + operations.comparisons) * self.addition
            + operations.divisions * self.division
            + operations.exponentials * self.exponential
        )


HOROWITZ = "Horowitz, Computing's energy problem, ISSCC 2014, doi:10.1109/ISSCC.2014.6757323 (45 nm, 0.9 V)"
TABLES = (
    CostTable("45nm-float32", 32, 4.6, 0.9, HOROWITZ),
    CostTable("45nm-int8", 8, 0.23, 0.03, HOROWITZ),
    CostTable("paper", 32, 4.5, 0.9, "SpikeGPT, arXiv 2302.13939", multiplication=3.6),
)
MEMORIES = {"none": 0.0, "SRAM": 12.5, "DRAM": 162.5}
"""pJ per byte, Horowitz 2014: 100 pJ for 64 bits of a 1 MB cache, 1.3 nJ (the lower end) for 64 bits of DRAM."""


@dataclass(frozen=True)
class Accounting:
    """One way to count the run, per token."""

    name: str
    rule: str
    """What it takes for what."""
    ac: float
    mac: float
    elementwise: Operations
    weights: float
    """Weights read."""
    floats: float
    """Other values read or written, float32."""
    has_memory: bool = True
    """Whether it says anything of memory traffic."""

    def energy(self, table: CostTable, memory: str = "none") -> dict[str, float]:
        """pJ per token: products, elementwise, memory and total."""
        moved = self.weights * table.bits / 8 + self.floats * 4
        parts = {
            "products": self.ac * table.ac + self.mac * table.mac,
            "elementwise": table.elementwise(self.elementwise),
            "memory": moved * MEMORIES[memory],
        }
        return parts | {"total": sum(parts.values())}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values under the fields' names."""
        return dataclasses.asdict(self) | {"bytes_read": bytes_by_width(self.weights)}


def picojoules(config: ModelConfig, weights: float, table: CostTable = TABLES[1], memory: str = "SRAM") -> float:
    """pJ of a token that reads `weights` weights: an addition each behind event neurons, else a multiplication too."""
    work = sum((site.operations for site in elementwise(config)), Operations())
    ac, mac = (weights, 0.0) if config.spikes == "before" else (0.0, weights)
    return Accounting("token", "", ac, mac, work, weights, floats_moved(config)).energy(table, memory)["total"]


def accountings(profile: Profile) -> list[Accounting]:
    """The dense twin first, then every accounting that makes sense of this model."""
    config = profile.config
    work = sum((site.operations for site in profile.elementwise), Operations())
    floats = floats_moved(config)
    twin = dense_twin(config)
    dense = profile.total("dense")
    ac, mac = profile.total("ac"), profile.total("mac")
    twin_work = sum((site.operations for site in elementwise(twin)), Operations())
    rows = [
        Accounting("dense", "the same matrices, every weight multiplied; no neurons", 0, dense, twin_work, dense,
                   floats_moved(twin)),
    ]  # fmt: skip
    if config.spikes == "after":
        rows += [
            Accounting("as built", "what the matrices read: floats are MACs", ac, mac, work, ac + mac, floats),
            _as_the_paper_counts(profile),
        ]
    elif config.spikes == "before":
        rows += [
            Accounting("events", "an event is one AC per output, whatever its size", ac, mac, work, ac + mac, floats),
            Accounting("events as MACs", "an event is one MAC per output: its size is multiplied", 0, ac + mac, work,
                       ac + mac, floats),
            *_expansions(profile, work, floats),
        ]  # fmt: skip
    else:
        rows.append(Accounting("as built", "what the matrices read: floats are MACs", ac, mac, work, ac + mac, floats))
    return rows


def _expansions(profile: Profile, work: Operations, floats: float) -> list[Accounting]:
    rows = []
    for name, count in (("bit spikes", "bit_spikes"), ("unit spikes", "units")):
        expanded = profile.expanded(count)
        if expanded is None:
            continue
        how = "its ones, bit by bit" if count == "bit_spikes" else "as many spikes as its size"
        rule = f"an event is expanded into {how}: one AC and one weight read for each"
        mac = profile.total("mac")
        rows.append(Accounting(name, rule, expanded, mac, work, expanded + mac, floats))
    return rows


def _as_the_paper_counts(profile: Profile) -> Accounting:
    """Every product behind a spike layer as AC x that layer's rate; WKV as 6 MACs a channel; nothing else."""
    rates = {layer.name: layer.rate for layer in profile.neurons}
    ac = mac = 0.0
    for product in profile.products:
        rate = rates.get(_spike_layer_before(product, profile.config.n_layer))
        each = product.dense / product.tokens
        if rate is None:
            mac += each
        else:
            ac += each * rate
    wkv_steps = sum(1 for site in profile.elementwise if site.kind == "wkv") * profile.config.n_embd
    rule = (
        "products behind a spike layer are taken as AC x its firing rate although they read floats; "
        "WKV is 6 MACs a channel; norms, gates, token shifts, neurons and memory cost nothing"
    )
    return Accounting("as the paper counts", rule, ac, mac + 6 * wkv_steps, Operations(), ac + mac, 0, has_memory=False)


def _spike_layer_before(product: Product, layers: int) -> str:
    """Name of the last layer of spikes that was added to the residual before this product."""
    if product.name == "head":
        return f"blocks.{layers - 1}.lif2"
    _, block, part, _ = product.name.split(".")
    if part == "ffn":
        return f"blocks.{block}.lif1"
    return "emb_spike" if block == "0" else f"blocks.{int(block) - 1}.lif2"


def energies(rows: list[Accounting]) -> list[dict[str, Any]]:
    """pJ per token of each accounting under each table and memory, and how many times less than dense it is."""
    return [
        {"accounting": row.name, "table": table.name, "memory": memory}
        | (cost := row.energy(table, memory))
        | {"saving": rows[0].energy(table, memory)["total"] / cost["total"]}
        for table in TABLES
        for memory in MEMORIES
        for row in rows
        if row.has_memory or memory == "none"
    ]


LEFT_OUT = (
    "Left out: choosing the next token and the tokenizer; the traffic of activations and events between units, "
    "addresses and scales; wider accumulators than the table's; control, clocks and leakage. One text is read token by "
    "token, so no weight is read once for several tokens."
)


def answer(profile: Profile, rows: list[Accounting]) -> str:
    """Does the spiking save anything? One sentence with numbers."""
    dense = profile.total("dense")
    if profile.config.spikes == "none":
        return (
            f"Nothing spikes here: all {short(dense)} products per token are multiply-accumulates, a saving of 1.00x."
        )
    by_name = {row.name: row for row in rows}
    int8 = TABLES[1]
    if profile.total("mac") == dense:
        paper = by_name.get("as the paper counts")
        claim = f"; counted as in the paper it would be {_saving(rows[0], paper, TABLES[2]):.1f}x" if paper else ""
        return (
            f"No: {profile.firing_rate:.1%} of the neurons fire, but every matrix reads floats, so all "
            f"{short(dense)} products per token are multiply-accumulates, a saving of 1.00x{claim}."
        )
    units = profile.expanded("units") or 0
    read = profile.total("weights_read")
    events, expanded = by_name["events"], by_name["unit spikes"]
    most, least = (_saving(rows[0], row, int8, "SRAM") for row in (events, expanded))
    most_alone, least_alone = (_saving(rows[0], row, int8) for row in (events, expanded))
    verdict = "Yes" if least > 1 else "It depends on what an event costs" if most > 1 else "No"
    return (
        f"{verdict}: {short(read)} of {short(dense)} weights are read per token ({profile.activity:.1%}, "
        f"{dense / read:.2f}x fewer; {dense / (units + profile.total('mac')):.2f}x fewer accumulates once every event is "
        f"expanded into unit spikes), and by the table {int8.name} with weights in SRAM the whole token takes {most:.2f}x "
        f"less energy than dense if an event costs one accumulate per output, {least:.2f}x if it costs its size "
        f"({most_alone:.2f}x and {least_alone:.2f}x without any memory), elementwise parts included."
    )


def _saving(dense: Accounting, row: Accounting, table: CostTable, memory: str = "none") -> float:
    return dense.energy(table, memory)["total"] / row.energy(table, memory)["total"]


def short(number: float) -> str:
    """A count in three digits: 950, 12.3k, 4.56M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"


def describe(profile: Profile) -> dict[str, Any]:
    """Everything, as JSON values; counts are per token."""
    rows = accountings(profile)
    elementwise_total = sum((site.operations for site in profile.elementwise), Operations())
    return {
        "tokens": profile.tokens,
        "spikes": profile.config.spikes,
        "answer": answer(profile, rows),
        "left_out": LEFT_OUT,
        "total": {
            "activity": profile.activity,
            "firing_rate": profile.firing_rate,
            "events": profile.total("events"),
            "unit_spikes": profile.total("units"),
            "ac": profile.total("ac"),
            "ac_unit_spikes": profile.expanded("units"),
            "ac_bit_spikes": profile.expanded("bit_spikes"),
            "mac": profile.total("mac"),
            "dense": profile.total("dense"),
            "bytes_read": bytes_by_width(profile.total("weights_read")),
            "membrane_updates": profile.membrane_updates,
            "elementwise": elementwise_total.to_dict(),
            "dead_neurons": sum(layer.dead * layer.neurons for layer in profile.neurons),
            "saturated_neurons": sum(layer.saturated * layer.neurons for layer in profile.neurons),
        },
        "products": [product.to_dict() for product in profile.products],
        "neurons": [dataclasses.asdict(layer) for layer in profile.neurons],
        "elementwise": [
            {"name": site.name, "kind": site.kind, **site.operations.to_dict()} for site in profile.elementwise
        ],
        "accountings": [row.to_dict() for row in rows],
        "tables": [dataclasses.asdict(table) for table in TABLES],
        "memories": MEMORIES,
        "energy": energies(rows),
        "neurobench": profile.neurobench(),
    }

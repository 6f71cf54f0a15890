"""A profile as tables for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from ..model.meter import LayerActivity
from ..model.sites import sites_by_neuron
from ..profiling.counts import Profile, bytes_by_width
from ..profiling.elementwise import Operations
from ..profiling.energy import LEFT_OUT, MEMORIES, TABLES, Accounting, accountings, answer, short


def print_profile(profile: Profile) -> None:
    """Products, neurons, elementwise work, energies; then what they say and what they leave out."""
    console = Console()
    if not console.is_terminal:  # a file or a pipe, which is as wide as the tables
        console.width = 160
    rows = accountings(profile)
    console.print(products_table(profile))
    widths = bytes_by_width(profile.total("weights_read")).items()
    sizes = ", ".join(f"{count / 1000:,.1f} kB at {width}" for width, count in widths)
    console.print(f"weights read per token: {sizes}", highlight=False)
    if profile.config.spikes == "after":
        console.print(neurons_table(profile.neurons))
    console.print(elementwise_table(profile))
    console.print(energy_table(rows))
    for row in rows:
        console.print(f"{row.name}: {row.rule}", style="dim", highlight=False)
    console.print(f"\nDoes the spiking save anything? {answer(profile, rows)}", style="bold", highlight=False)
    console.print(LEFT_OUT, highlight=False)


def products_table(profile: Profile) -> Table:
    """One row per matrix, and their sum; per token."""
    table = _table(
        f"Matrix products, per token ({profile.tokens:,} tokens read)",
        ("product", "reads", "weights", "activity", "events", "unit spikes", "AC", "AC, units", "MAC", "kB read",
         "dead", "saturated"),
    )  # fmt: skip
    in_front = sites_by_neuron(profile.config)
    silent = {in_front[layer.name].name: layer for layer in profile.neurons if layer.name in in_front}
    for product in profile.products:
        layer = silent.get(product.name)
        counts = (product.events, product.units, product.ac, product.units * product.outputs, product.mac)
        table.add_row(
            product.name, product.kind, f"{product.outputs} x {product.inputs}", f"{product.activity:.1%}",
            *(short(count / product.tokens) for count in counts),
            f"{product.weights_read / product.tokens * product.bits / 8000:.1f}",
            *((f"{layer.dead:.1%}", f"{layer.saturated:.1%}") if layer else ("", "")),
        )  # fmt: skip
    table.add_section()
    units = profile.expanded("units") or 0
    kilobytes = sum(product.weights_read * product.bits for product in profile.products) / profile.tokens / 8000
    counts = (profile.total("events"), profile.total("units"), profile.total("ac"), units, profile.total("mac"))
    table.add_row(
        "all", "", short(profile.total("dense")), f"{profile.activity:.1%}", *map(short, counts), f"{kilobytes:.1f}",
        *(f"{_share(profile.neurons, which):.1%}" if profile.neurons else "" for which in ("dead", "saturated")),
    )  # fmt: skip
    return table


def neurons_table(neurons: list[LayerActivity]) -> Table:
    """One row per layer of neurons that stands behind the matrices."""
    table = _table("Neurons", ("layer", "neurons", "firing rate", "dead", "saturated"))
    for layer in neurons:
        shares = (layer.rate, layer.dead, layer.saturated)
        table.add_row(layer.name, str(layer.neurons), *(f"{share:.1%}" for share in shares))
    return table


def elementwise_table(profile: Profile) -> Table:
    """One row per kind of elementwise work, per token, summed over the model."""
    kinds: defaultdict[str, Operations] = defaultdict(Operations)
    for site in profile.elementwise:
        kinds[site.kind] += site.operations
        kinds["all"] += site.operations
    table = _table(
        f"Elementwise, per token ({profile.membrane_updates:,} membrane updates)",
        ("site", "multiplications", "additions", "comparisons", "exponentials", "divisions"),
    )
    for kind in sorted(kinds, key=lambda kind: kind == "all"):
        table.add_row(kind, *map(short, kinds[kind].to_dict().values()))
    return table


def energy_table(rows: list[Accounting]) -> Table:
    """One row per accounting and cost table, in nJ per token; in brackets how many times less than dense."""
    table = _table(
        "Energy, nJ per token",
        ("accounting", "costs", "products", "elementwise", *(_with(memory) for memory in MEMORIES)),
    )
    for costs in TABLES:
        for row in rows:
            alone = row.energy(costs)
            totals = []
            for memory in MEMORIES:
                if not row.has_memory and memory != "none":
                    totals.append("not counted")
                    continue
                total, dense = row.energy(costs, memory)["total"], rows[0].energy(costs, memory)["total"]
                totals.append(f"{total / 1000:,.1f} ({dense / total:.2f}x)")
            parts = (f"{alone[part] / 1000:,.1f}" for part in ("products", "elementwise"))
            table.add_row(row.name, costs.name, *parts, *totals)
        table.add_section()
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=not index)
    return table


def _with(memory: str) -> str:
    return "total" if memory == "none" else f"with {memory}"


def _share(neurons: list[LayerActivity], which: str) -> float:
    return sum(getattr(layer, which) * layer.neurons for layer in neurons) / sum(layer.neurons for layer in neurons)

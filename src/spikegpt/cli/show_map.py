"""A model on a chip, as a table and as a picture."""

from __future__ import annotations

import importlib
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..errors import UserError
from ..export.mapping import ON_HOST, Map
from ..files import write_atomically


def print_map(found: Map) -> None:
    """The map in words and one row per block."""
    chip, console = found.chip, Console()
    form = "graded, a payload an event" if chip.payload_bits else "binary, an event of n sent as n spikes"
    table = Table(title=f"{chip.name}: {found.cores} of {chip.cores} cores, {found.fill:.0%} of their memory; {form}")
    for name in ("matrix", "inputs", "outputs", "cores", "kB", "spikes/token", "messages/token"):
        table.add_column(name, justify="left" if name == "matrix" else "right")
    for each in found.placed:
        table.add_row(
            each.name, f"{each.inputs:,}", f"{each.outputs:,}", str(each.cores), f"{each.bytes / 1024:,.0f}",
            f"{each.spikes:,.1f}", f"{each.messages:,.1f}",
        )  # fmt: skip
    console.print(table)
    events, units, bits = found.total("events"), found.total("units"), found.payload_bits
    console.print(
        f"a token: {events:,.0f} events ({units:,.0f} unit spikes, {bits} bits each), {found.total('messages'):,.0f} "
        f"messages between cores, {found.total('synaptic_operations'):,.0f} synaptic operations"
    )
    console.print(
        f"host: {found.host_bytes_in:,} bytes in, {found.host_bytes_out:,} bytes out a token; there stay {', '.join(ON_HOST)}"
    )
    energy = found.energy_uj
    said = "not published" if energy is None else f"{energy:.1f} uJ a token; not in it: the host, static power"
    console.print(f"energy of the products: {said} ({chip.source})")
    console.print("it fits" if not found.problems else "it does not fit: " + "; ".join(found.problems))


def plot_map(found: Map, path: Path) -> None:
    """A square a core, coloured by block, as full as its memory."""
    try:
        pyplot = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise UserError("pictures need matplotlib; pip install 'spikegpt[plot]'") from None
    columns = 16
    figure = pyplot.Figure(figsize=(8, 0.5 * (max(found.cores, found.chip.cores) // columns + 3)))
    axes = figure.add_subplot()
    labels = list(dict.fromkeys(_group(each.name) for each in found.placed))
    core = 0
    for each in found.placed:
        colour = f"C{labels.index(_group(each.name)) % 10}"
        for _ in range(each.cores):
            fill = each.bytes / each.cores / found.chip.core_bytes
            axes.bar(core % columns, 0.9 * fill, width=0.9, bottom=-(core // columns), color=colour, align="edge")
            core += 1
    for free in range(found.chip.cores):
        axes.bar(free % columns, 0.9, width=0.9, bottom=-(free // columns), fill=False, edgecolor="0.8", align="edge")
    for number, label in enumerate(labels):
        axes.bar(0, 0, color=f"C{number % 10}", label=label)
    axes.set_title(f"{found.chip.name}: {found.cores} of {found.chip.cores} cores, filled as far as weights fill them")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_axis_off()
    write_atomically(path, lambda staged: figure.savefig(staged, bbox_inches="tight", format=path.suffix[1:] or "png"))


def _group(name: str) -> str:
    parts = name.split(".")
    return "head" if len(parts) == 1 else f"block {parts[1]}"

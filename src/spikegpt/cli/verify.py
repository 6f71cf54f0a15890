"""`spikegpt verify`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from .options import Json


def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `spikegpt export nir` wrote.")],
    simulator: Annotated[
        str, typer.Option(help="norse, snntorch, spikingjelly, sinabs, or reference (the specification, in NumPy).")
    ] = "reference",
    only: Annotated[str, typer.Option(help="Segments whose name contains this.")] = "",
    json: Json = False,
) -> None:
    """Run exported NIR graphs in a simulator and compare every spike and sum with the model's; exit code 1 if one differs."""
    from ..export.nir.verify import verify as run
    from .show import counting, print_json

    with counting("verifying", "segments") as report:
        found = run(directory, simulator, only=only, report=report)
    wrong = sum(segment.spikes_wrong + segment.sums_wrong for segment in found)
    if json:
        print_json({"simulator": simulator, "wrong": wrong, "segments": [dataclasses.asdict(each) for each in found]})
    else:
        spikes, fired = sum(each.spikes for each in found), sum(each.fired for each in found)
        typer.echo(
            f"{simulator}: {len(found)} segments, {sum(each.spikes_wrong for each in found)} of {spikes:,} spikes wrong "
            f"({fired:,} fire), {sum(each.sums_wrong for each in found)} of {sum(each.sums for each in found):,} sums wrong"
        )
    if wrong:
        raise typer.Exit(1)

"""`spikegpt pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pack(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of an event-driven model, or of a run.")],
    out: Annotated[
        Path | None, typer.Argument(help="Where to write it.", show_default="DIR-8bit, DIR-8bit-fixed")
    ] = None,
    bits: Annotated[int, typer.Option(help="Bits of a weight: 8 or 4.")] = 8,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="Make all other numbers integers too; DIR may be packed already.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a packed model that is there.")] = False,
) -> None:
    """Write an event-driven model in integers, for the engine that reads only the weights of neurons that fire."""
    from ..engine import pack as run

    typer.echo(run(model, out, bits=bits, fixed=fixed, force=force))

"""`spikegpt export`: a model for other programs and machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[Path, typer.Argument(metavar="MODEL", help="An event-driven model's directory, or `shipped`.")]
Out = Annotated[Path, typer.Argument(help="A new directory.")]

app = typer.Typer(help="Write a model for other programs and machines.", no_args_is_help=True, rich_markup_mode=None)


@app.command("c")
def export_c(model: Source, out: Out) -> None:
    """C files in integers only, without float, allocation or library: for microcontrollers."""
    from ..export.c import export_c as run
    from ..loading import model_directory

    fixed = run(model_directory(model), out)
    typer.echo(
        f"{out}: {fixed.config.n_layer} x {fixed.config.n_embd}, {fixed.bits}-bit weights; cmake -S {out} -B build"
    )

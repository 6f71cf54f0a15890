"""`spikegpt trace`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Backend, Device, Model


def trace(
    text: Annotated[str | None, typer.Argument(help="The text to read; or give --data.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz to write.")] = Path("trace.npz"),
    layers: Annotated[
        str | None, typer.Option(help="Blocks to watch: 0-3, or 0,2,5.", show_default="all, embedding and head too")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", "-d", help="Text files to read instead of TEXT; repeatable.")
    ] = None,
    model: Model = None,
    chunk: Annotated[int, typer.Option(help="Tokens read at a time; changes nothing but memory and speed.")] = 1024,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    device: Device = None,
    backend: Backend = "auto",
) -> None:
    """Write the spikes and membranes of a text to a file, in constant memory however long it is."""
    from ..profiling import trace as tracing
    from .show import print_table
    from .start import load_model

    source = tracing.texts(text, data)
    written = tracing.trace(
        load_model(model, device, backend), source, out, layers=tracing.parse_layers(layers), chunk=chunk, force=force
    )
    print_table(written.to_dict())

"""`spikegpt draw`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Model


def draw(
    text: Annotated[str, typer.Argument(help="The sentence to read.")],
    model: Model = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .png, .svg or .pdf; without it, in the terminal.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(help="Channels a layer to draw.", show_default="all; 16 in a terminal")
    ] = None,
) -> None:
    """Draw the spikes of a sentence, and of a classifier the label as it forms.

    Tokens across, channels down, a panel for each layer.
    """
    from ..profiling import raster
    from .start import load_model

    spikes = raster.record(load_model(model, None, "auto"), text)
    if out is None:
        print(raster.as_text(spikes, 16 if channels is None else channels))
    else:
        raster.save_picture(spikes, out, channels)

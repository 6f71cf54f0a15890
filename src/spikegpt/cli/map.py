"""`spikegpt map`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Data, Json


def map(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An event-driven model's directory, `shipped` or `children`.")
    ],
    data: Data,
    chip: Annotated[
        str, typer.Option(help="loihi1, loihi2, spinnaker2, or a TOML file (docs/hardware.md).")
    ] = "loihi2",
    tokens: Annotated[int, typer.Option("--tokens", "-n", help="Tokens to read; 0: all.")] = 2048,
    json: Json = False,
    plot: Annotated[Path | None, typer.Option(help="A picture of what lies on which core.")] = None,
) -> None:
    """What a neuromorphic chip would have to hold and do: cores, messages, host traffic, energy where it is published."""
    from ..export.mapping import load_chip, map_model
    from ..loading import load, model_directory
    from ..profiling.counts import profile
    from .show import counting, print_json
    from .show_map import plot_map, print_map

    limits = load_chip(chip)
    loaded = load(model_directory(model), engine="event")
    with counting("reading", "tokens") as report:
        counted = profile(loaded, data, tokens=tokens or None, report=report)
    found = map_model(loaded.config, counted.products, limits)
    if plot is not None:
        plot_map(found, plot)
    if json:
        print_json(found.to_dict())
    else:
        print_map(found)

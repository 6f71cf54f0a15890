"""`spikegpt profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .options import Backend, Data, Device, Json, Model


def profile(
    data: Data,
    model: Model = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", help="Tokens to read; 0: all.")] = 4096,
    engine: Annotated[
        str, typer.Option(help="float: the model itself. event: the integer engine and its own counters.")
    ] = "float",
    device: Device = None,
    backend: Backend = "auto",
    json: Json = False,
) -> None:
    """Count spikes, operations and energy while a model reads text: does the spiking save anything?"""
    from .. import energy, profiling
    from .show import counting, print_json
    from .show_profile import print_profile

    loaded = _load(model, engine, device, backend)
    with counting("reading", "tokens") as report:
        counted = profiling.profile(loaded, data, tokens=tokens or None, report=report)
    if json:
        print_json(energy.describe(counted))
    else:
        print_profile(counted)


def _load(name: str | None, engine: str, device: str | None, backend: str) -> Any:
    from ..engine import EventModel
    from ..engine.pack import is_packed
    from .start import load_model

    if engine not in ("float", "event"):
        raise UsageError(f"engine {engine!r} is not one of float, event")
    if name is not None and is_packed(Path(name)):
        return EventModel.load(name)
    if engine == "float":
        return load_model(name, device, backend)
    return EventModel.of(load_model(name, "cpu", backend))

"""`spikegpt profile`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Backend, Data, Device, Engine, Json, Model


def profile(
    data: Data,
    model: Model = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", help="Tokens to read; 0: all.")] = 4096,
    engine: Engine = "auto",
    device: Device = None,
    backend: Backend = "auto",
    json: Json = False,
) -> None:
    """Count spikes, operations and energy while a model reads text: does the spiking save anything?"""
    from ..profiling import counts as profiling
    from ..profiling import energy
    from .show import counting, print_json
    from .show_profile import print_profile
    from .start import load_model

    loaded = load_model(model, device, backend, engine=engine)
    with counting("reading", "tokens") as report:
        counted = profiling.profile(loaded, data, tokens=tokens or None, report=report)
    if json:
        print_json(energy.describe(counted))
    else:
        print_profile(counted)

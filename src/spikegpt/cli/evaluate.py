"""`spikegpt eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Backend, Data, Device, Engine, Json, Model, ReferenceGeneration


def evaluate(
    data: Data,
    model: Model = None,
    chunk: Annotated[int, typer.Option(help="Tokens read at a time; changes nothing but memory and speed.")] = 1024,
    streams: Annotated[
        int, typer.Option(help="Parts of the text read side by side: faster, only approximate at the seams.")
    ] = 1,
    device: Device = None,
    backend: Backend = "auto",
    engine: Engine = "auto",
    reference_generation: ReferenceGeneration = False,
    json: Json = False,
) -> None:
    """Measure a model on text, in bits per byte.

    The bytes are those of the raw text, whatever the tokenizer; the state is carried through all of it.
    """
    from ..evaluation import evaluate_files
    from .show import counting, print_json, print_table
    from .start import load_model

    loaded = load_model(model, device, backend, reference_generation, engine)
    with counting("reading", "tokens") as report:
        result = evaluate_files(loaded, data, chunk=chunk, streams=streams, report=report).to_dict()
    if json:
        print_json(result)
    else:
        print_table(result)

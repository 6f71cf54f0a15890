"""`spikegpt generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Backend, Device, Engine, Json, Model, ReferenceGeneration

Prompts = Annotated[
    list[str] | None,
    typer.Argument(help="Text to continue from; several are written together. - reads standard input."),
]


def generate(
    prompts: Prompts = None,
    model: Model = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens to write at most.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the fewest tokens that reach this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Keep tokens this many times as likely as the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: less of what is already there.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.", show_default="random")] = None,
    stop: Annotated[list[str], typer.Option(help="End before this text; repeatable.")] = [],  # noqa: B006
    state: Annotated[Path | None, typer.Option(help="Continue from a state saved with --save-state.")] = None,
    save_state: Annotated[Path | None, typer.Option(help="Write what the model remembers at the end.")] = None,
    device: Device = None,
    backend: Backend = "auto",
    engine: Engine = "auto",
    reference_generation: ReferenceGeneration = False,
    json: Json = False,
) -> None:
    """Write text, as it comes."""
    from .show import read_prompts, write_batch, write_stream
    from .start import load_model

    texts = prompts or [""]
    options = dict(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed, stop=stop,
    )  # fmt: skip
    loaded = load_model(model, device, backend, reference_generation, engine)
    if len(texts) == 1:
        write_stream(loaded, texts[0], json, **options, state=state, save_state=save_state)
    elif state or save_state:
        raise typer.BadParameter("--state and --save-state go with one prompt")
    else:
        write_batch(loaded, read_prompts(texts), json, **options)

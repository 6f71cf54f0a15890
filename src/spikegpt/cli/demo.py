"""`spikegpt demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Model


def demo(
    model: Model = None,
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "It was a dark night, and",
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens to write.")] = 200,
    seconds: Annotated[float, typer.Option(help="Seconds of training; 0: none.")] = 40.0,
    seed: Annotated[int | None, typer.Option(help="Of the text.", show_default="random")] = None,
) -> None:
    """Write text, show who fires, train a model.

    A tour of what there is, within two minutes.
    """
    from ..cli import tour
    from .start import load_model

    tour.run(load_model(model, None, "auto", engine="auto"), prompt, max_tokens=max_tokens, seconds=seconds, seed=seed)

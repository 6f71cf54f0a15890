"""`spikegpt train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import PRESETS, Spikes, TrainConfig
from .options import Backend, Data, Device, Json, given_options, options_from, settings_from


@options_from(TrainConfig)
def train(
    command: typer.Context,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's directory.")],
    shape: Annotated[str, typer.Option("--preset", "-p", help=f"Shape of the model: {', '.join(PRESETS)}.")] = "small",
    spikes: Annotated[
        Spikes | None, typer.Option(help="Where neurons stand.", show_default="the preset's: after")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="bytes, chars, bpe:SIZE or a tokenizer.json.", show_default="what suits the preset"),
    ] = None,
    overrides: Annotated[
        list[str], typer.Option("--set", help="A field of ModelConfig, as n_layer=8 or event.activity=0.1; repeatable.")
    ] = [],  # noqa: B006 (typer copies it)
    valid: Annotated[
        list[Path], typer.Option(help="Held-out text; repeatable.", show_default="a fraction of the data")
    ] = [],  # noqa: B006
    hold_out: Annotated[float, typer.Option(help="Fraction of the documents held out without --valid.")] = 0.01,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Where tokenised text is kept.", show_default="~/.cache/spikegpt")
    ] = None,
    teacher: Annotated[
        list[Path],
        typer.Option(help="A model's directory; with --distill its predictions are learned too. Several: their mean."),
    ] = [],  # noqa: B006
    auto: Annotated[
        bool,
        typer.Option("--auto", help="Pick precision, backend, batch and accumulation for this machine, and say why."),
    ] = False,
    device: Device = None,
    backend: Backend = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard too.")] = False,
    json: Json = False,
    **settings: Any,
) -> None:
    """Train a model on text, or resume a run."""
    from ..training.recipe import train_on
    from .show import print_json

    config = TrainConfig(**settings)
    fields = settings_from(overrides) | ({} if spikes is None else {"spikes": spikes})
    result = train_on(
        data, out, valid=valid, hold_out=hold_out, shape=shape, tokenizer=tokenizer, overrides=fields, config=config,
        resume=resume, cache=cache, backend=backend, device=device, tensorboard=tensorboard, teacher=teacher or None,
        auto=given_options(command) if auto else None,
    )  # fmt: skip
    if json:
        print_json(result)
    if result["interrupted"]:
        raise typer.Exit(130)

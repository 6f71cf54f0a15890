"""`spikegpt spikify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .options import Data, Json, settings_from


def spikify(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A continuous model: a directory, or an RWKV-4 file.")],
    out: Annotated[Path, typer.Argument(metavar="DST", help="The run's directory.")],
    data: Data,
    valid: Annotated[
        list[Path], typer.Option(help="Held-out text; repeatable.", show_default="a fraction of the data")
    ] = [],  # noqa: B006 (typer copies it)
    activity: Annotated[float, typer.Option(help="Fraction of the weights read per token, in (0, 1].")] = 0.15,
    steps: Annotated[int, typer.Option(help="Steps of fine-tuning.")] = 500,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    batch_size: Annotated[int, typer.Option(help="Sequences in a batch.")] = 16,
    distill: Annotated[float, typer.Option(help="Weight of the teacher's predictions, in [0, 1].")] = 0.9,
    match: Annotated[float, typer.Option(help="Weight of the distance from the teacher's residuals.")] = 2.0,
    teacher: Annotated[
        list[Path], typer.Option(help="A model to learn from; several: their mean.", show_default="the original")
    ] = [],  # noqa: B006
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one setting of the neurons, as event.smallest=2; repeatable."
        ),
    ] = [],  # noqa: B006
    precision: Annotated[str, typer.Option(help="no (float32) or bf16.")] = "no",
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in DST.")] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Where tokenised text is kept.", show_default="~/.cache/spikegpt")
    ] = None,
    json: Json = False,
) -> None:
    """Turn a continuous model into an event-driven one, or an event-driven one to another activity."""
    from ..config import TrainConfig
    from ..training.spikify import spikify as run
    from .show import print_json

    settings = settings_from(overrides)
    event = settings.pop("event", {})
    if settings or not isinstance(event, dict):
        raise UsageError("--set changes the neurons here: event.KEY=VALUE; the shape is that of the source")
    config = TrainConfig(
        steps=steps, lr=lr, batch_size=batch_size, warmup=min(20, steps), distill=distill, match=match,
        precision=precision,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    result = run(
        source, out, data=data, valid=valid, activity=activity, config=config, teacher=teacher or None, resume=resume,
        cache=cache, event=event,
    )  # fmt: skip
    if json:
        print_json(result)
    if result["interrupted"]:
        raise typer.Exit(130)

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
    steps: Annotated[
        int | None, typer.Option(help="Steps of fine-tuning.", show_default="500; 200 of each block")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.", show_default="2e-3; 4e-3 by block")] = None,
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
    by_block: Annotated[
        bool,
        typer.Option(
            "--by-block", help="One block after the other, each matched to the original's: the memory of one."
        ),
    ] = False,
    tokens: Annotated[int, typer.Option(help="With --by-block: tokens of text to train on.")] = 2**18,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --by-block: tell what it would need, and do nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in DST.")] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Where tokenised text is kept.", show_default="~/.cache/spikegpt")
    ] = None,
    json: Json = False,
) -> None:
    """Turn a continuous model into an event-driven one, or an event-driven one to another activity."""
    from ..config import TrainConfig
    from ..training.by_block import spikify_by_block
    from ..training.by_block_plan import plan
    from ..training.spikify import spikify as end_to_end
    from .show import print_json
    from .show_blocks import print_plan, print_report

    settings = settings_from(overrides)
    event = settings.pop("event", {})
    if settings or not isinstance(event, dict):
        raise UsageError("--set changes the neurons here: event.KEY=VALUE; the shape is that of the source")
    if dry_run and not by_block:
        raise UsageError("--dry-run tells what --by-block needs; give both")
    if by_block and teacher:
        raise UsageError("--by-block learns from the original alone; leave out --teacher")
    steps = (200 if by_block else 500) if steps is None else steps
    lr = (4e-3 if by_block else 2e-3) if lr is None else lr
    config = TrainConfig(
        steps=steps, lr=lr, batch_size=batch_size, warmup=min(20, steps), distill=distill,
        match=0.0 if by_block else match, log_every=50 if by_block else 10,
        precision=precision,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    if dry_run:
        needed = plan(source, activity, event, config, tokens)
        print_json(needed.to_dict()) if json else print_plan(needed)
        return
    if by_block:
        result = spikify_by_block(
            source, out, data=data, valid=valid, activity=activity, event=event, config=config, tokens=tokens,
            resume=resume, cache=cache,
        )  # fmt: skip
    else:
        result = end_to_end(
            source, out, data=data, valid=valid, activity=activity, config=config, teacher=teacher or None,
            resume=resume, cache=cache, event=event,
        )  # fmt: skip
    if json:
        print_json(result)
    elif by_block and not result["interrupted"]:
        print_report(result, source)
    if result["interrupted"]:
        raise typer.Exit(130)

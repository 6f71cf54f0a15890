"""`spikegpt spikify`."""

from __future__ import annotations

import dataclasses
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
    batch_size: Annotated[int | None, typer.Option(help="Sequences in a batch.", show_default="16; 8 by block")] = None,
    distill: Annotated[
        float | None, typer.Option(help="Weight of the teacher's predictions, in [0, 1].", show_default="0.9")
    ] = None,
    match: Annotated[
        float | None, typer.Option(help="Weight of the distance from the teacher's residuals.", show_default="2")
    ] = None,
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
    from ..training import by_block as in_parts
    from ..training import spikify as as_a_whole
    from ..training.by_block_plan import plan
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
    if by_block and match is not None:
        raise UsageError("--by-block has no other weight than 1 for the residuals; leave out --match")
    given = {"steps": steps, "lr": lr, "batch_size": batch_size, "distill": distill, "match": match}
    usual = in_parts.default_config() if by_block else as_a_whole.default_config()
    config = dataclasses.replace(
        usual,
        precision=precision,  # pyright: ignore[reportArgumentType]
        warmup=usual.warmup if steps is None else min(usual.warmup, steps),
        **{name: value for name, value in given.items() if value is not None},  # pyright: ignore[reportArgumentType]
    )
    if dry_run:
        needed = plan(source, activity, event, config, tokens)
        print_json(needed.to_dict()) if json else print_plan(needed)
        return
    if by_block:
        result = in_parts.spikify_by_block(
            source, out, data=data, valid=valid, activity=activity, event=event, config=config, tokens=tokens,
            resume=resume, cache=cache,
        )  # fmt: skip
    else:
        result = as_a_whole.spikify(
            source, out, data=data, valid=valid, activity=activity, config=config, teacher=teacher or None,
            resume=resume, cache=cache, event=event,
        )  # fmt: skip
    if json:
        print_json(result)
    elif by_block and not result["interrupted"]:
        print_report(result, source)
    if result["interrupted"]:
        raise typer.Exit(130)

"""`spikegpt finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import PRESETS, Spikes
from ..task import FinetuneConfig, Kind
from .options import Device, Json, options_from


@options_from(FinetuneConfig)
def finetune(
    data: Annotated[
        Path, typer.Argument(help="Rows to learn from: .csv .tsv .jsonl, or lines of a label and a text; .gz .xz.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The classifier's directory.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            show_default="the shipped model",
            help=f"What to start from: a directory, scratch:LAYERSxCHANNELS, or scratch: and one of {', '.join(PRESETS)}.",
        ),
    ] = None,
    valid: Annotated[
        Path | None, typer.Option(help="Rows that choose the best epoch.", show_default="held out of DATA")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Rows that are only reported on.")] = None,
    folds: Annotated[int, typer.Option(help="Cross-validation with this many folds; 0: none.")] = 0,
    text: Annotated[
        list[str],
        typer.Option(help="Column of the text, by name or number; twice for pairs.", show_default="found by name"),
    ] = [],  # noqa: B006 (typer copies it)
    label: Annotated[str | None, typer.Option(help="Column of the label.", show_default="found by name")] = None,
    task: Annotated[
        Kind | None, typer.Option(help="One label a text, several, or a number.", show_default="found from the labels")
    ] = None,
    spikes: Annotated[Spikes, typer.Option(help="From scratch: where neurons stand.")] = "before",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="From scratch: bytes, chars, bpe:SIZE or a tokenizer.json.", show_default="the shipped model's"
        ),
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="A classifier's directory, or a .npy of probabilities for the rows of DATA.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
    device: Device = None,
    json: Json = False,
    **settings: Any,
) -> None:
    """Train a classifier on labelled texts, and report on it."""
    from ..training.classify import finetune as run
    from .show import print_json

    result = run(
        data, out, model=model, valid=valid, test=test, folds=folds, text=text, label=label, kind=task, spikes=spikes,
        tokenizer=tokenizer, teacher=teacher, config=FinetuneConfig(**settings), resume=resume, device=device,
    )  # fmt: skip
    if json:
        print_json(result)
    if result["interrupted"]:
        raise typer.Exit(130)

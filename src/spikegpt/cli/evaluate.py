"""`spikegpt eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    text: Annotated[
        list[str],
        typer.Option(help="Of a classifier's rows: column of the text; twice for pairs.", show_default="found by name"),
    ] = [],  # noqa: B006 (typer copies it)
    label: Annotated[str | None, typer.Option(help="Of a classifier's rows: column of the label.")] = None,
    train: Annotated[
        Path | None,
        typer.Option(help="Of a classifier: rows that Naive Bayes learns from.", show_default="what it was trained on"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Of a classifier: draw reliability and confusion.")] = None,
    json: Json = False,
) -> None:
    """Measure a model on text, in bits per byte; a classifier on labelled rows, beside Naive Bayes.

    The bytes are those of the raw text, whatever the tokenizer; the state is carried through all of it.
    """
    from ..evaluation import evaluate_files
    from .show import counting, print_json, print_table
    from .start import load_model

    loaded = load_model(model, device, backend, reference_generation, engine)
    if loaded.config.task is not None:
        _of_labels(loaded, model, data, text, label, train, plot, json)
        return
    with counting("reading", "tokens") as report:
        result = evaluate_files(loaded, data, chunk=chunk, streams=streams, report=report).to_dict()
    if json:
        print_json(result)
    else:
        print_table(result)


def _of_labels(
    model: Any, name: str | None, data: list[Path], text: list[str], label: str | None, train: Path | None,
    plot: Path | None, json: bool,
) -> None:  # fmt: skip
    from ..data.labelled import read_rows
    from ..errors import UsageError
    from ..label_eval import compare, trained_on
    from . import show_labels
    from .show import counting, print_json

    if len(data) != 1:
        raise UsageError("a classifier is measured on one file of labelled rows; give --data once")
    rows = read_rows(data[0], text=text, label=label)
    known = read_rows(train, text=text, label=label) if train is not None else trained_on(Path(name or ""), text, label)
    with counting("reading", "texts") as report:
        found = compare(model, rows, known, report)
    if plot is not None:
        show_labels.plot(found, model.config.task, plot)
    if json:
        print_json(found.to_dict())
    else:
        show_labels.print_comparison(found, model.config.task)

"""`spikegpt classify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Backend, Device, Engine, Json


def classify(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT|FILE|-]...", help="Texts or files; - or nothing: standard input. For pairs, two and two."
        ),
    ] = None,
    model: Annotated[Path, typer.Option("--model", "-m", help="The classifier's directory.")] = ...,  # pyright: ignore[reportArgumentType]
    lines: Annotated[
        bool, typer.Option("--lines", help="Each line is a text (of a pair: two, a tab between); answered as it comes.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the label as it forms, after every token.")] = False,
    stop_at: Annotated[
        float | None,
        typer.Option(
            help="Answer as soon as it is this probable that the label stays; what follows is not read.",
            show_default="never",
        ),
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="Show what each word said for the label.")] = False,
    device: Device = None,
    backend: Backend = "auto",
    engine: Engine = "auto",
    json: Json = False,
) -> None:
    """Label texts, and say how sure the answer is and what it cost."""
    from ..model.classifier import Classifier
    from .label import Answers, inputs
    from .start import load_model

    classifier = Classifier(load_model(str(model), device, backend, engine=engine))
    answers = Answers(classifier, stop_at=stop_at, watch=watch, why=why, as_json=json)
    for text in inputs(texts or ["-"], lines=lines, pairs=classifier.task.pairs):
        answers.tell(text)

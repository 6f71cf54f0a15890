"""`spikegpt export`: a model for other programs and machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    Path, typer.Argument(metavar="MODEL", help="An event-driven model's directory, `shipped` or `children`.")
]
Out = Annotated[Path, typer.Argument(help="A new directory.")]

app = typer.Typer(help="Write a model for other programs and machines.", no_args_is_help=True, rich_markup_mode=None)


@app.command("c")
def export_c(model: Source, out: Out) -> None:
    """C files in integers only, without float, allocation or library: for microcontrollers."""
    from ..export.c import export_c as run
    from ..loading import model_directory

    fixed = run(model_directory(model), out)
    typer.echo(
        f"{out}: {fixed.config.n_layer} x {fixed.config.n_embd}, {fixed.bits}-bit weights; cmake -S {out} -B build"
    )


@app.command("nir")
def export_nir(
    model: Source,
    out: Out,
    dialect: Annotated[
        str, typer.Option(help="How the simulator steps a LIF: euler, unit, exp (docs/hardware.md).")
    ] = "euler",
    uniform: Annotated[bool, typer.Option("--uniform", help="One threshold a node, inputs scaled instead.")] = False,
    compat: Annotated[str, typer.Option(help="Oldest nir that must read the files: 1.0.4 or 1.0.8.")] = "1.0.8",
    text: Annotated[str | None, typer.Option(help="The text of the trace.", show_default="a sentence")] = None,
    only: Annotated[str, typer.Option(help="Segments whose name contains this.")] = "",
) -> None:
    """NIR graphs of neurons and matrices, with what the host computes between them and a trace to verify against."""
    from ..export.nir.write import TEXT
    from ..export.nir.write import export_nir as run
    from ..loading import model_directory

    manifest = run(
        model_directory(model), out, dialect=dialect, uniform=uniform, compat=compat, text=text or TEXT, only=only
    )
    typer.echo(
        f"{out}: {len(manifest['order'])} segments; {manifest['host_share']:.1%} of the weights stay on the host; "
        f"spikegpt verify {out} --simulator norse"
    )


@app.command("onnx")
def export_onnx(
    model: Source,
    out: Annotated[Path, typer.Argument(help="A new file.")],
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Tokens that one run reads.")] = 1,
) -> None:
    """One ONNX file of standard nodes, the state in and out; ONNX runs every weight, silence saves nothing there."""
    from ..export.onnx import export_onnx as run
    from ..loading import load, model_directory

    names = run(load(model_directory(model), engine="float"), out, tokens=tokens)
    typer.echo(
        f"{out}: inputs ids [1, {tokens}] and {len(names)} tensors of the state; outputs logits and the next state"
    )

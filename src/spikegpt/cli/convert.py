"""`spikegpt convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A .pth, an rwkv.cpp file, or a model's directory.")],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="A directory; of a model's directory, a .pth or an rwkv.cpp .bin.")
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="bytes, a tokenizer.json (20B_tokenizer.json for 50277 tokens), or characters in UTF-16 JSON.",
            show_default="bytes for 256 tokens",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="Who trained the weights: spikegpt or rwkv4.",
            show_default="rwkv4 for rwkv.cpp's files and names like RWKV-4..., else spikegpt",
        ),
    ] = None,
    spike_embedding: Annotated[
        bool | None,
        typer.Option(
            "--spike-embedding/--no-spike-embedding",
            help="Whether the embedding is made binary.",
            show_default="yes for spikegpt",
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Round a model directory's weights to float16 or bfloat16, into another one.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")] = False,
) -> None:
    """Convert published SpikeGPT and RWKV-4 weights to a model directory, and back."""
    from ..convert import convert as run
    from .show import print_table

    done = run(
        source, destination, tokenizer=tokenizer, kind=kind, spike_embedding=spike_embedding, dtype=dtype, force=force
    )
    print_table(done.to_dict())

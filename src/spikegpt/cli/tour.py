"""A tour in two minutes: text written with spikes, who fired, and a small model trained on the spot."""

from __future__ import annotations

import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..config import ModelConfig, TrainConfig
from ..data.batches import Windows
from ..data.tokens import Corpus, prepare
from ..engine import EventModel
from ..errors import UserError
from ..evaluation import bits_on_tokens
from ..generation.decode import generate
from ..model.meter import LayerActivity
from ..model.protocol import LanguageModel, Meter
from ..model.sites import sites, sites_by_neuron
from ..model.spikegpt import SpikeGPT
from ..tokenizer import ByteTokenizer
from ..training.language import fit_text
from ..training.loss import loss_fn

SHAPE = ModelConfig(vocab_size=256, n_layer=3, n_embd=128, context=128, dropout=0.0)
"""The model that is trained: small enough to learn something in under a minute on two cores."""
HELD_OUT = 8192
"""Bytes of held-out text on which it is measured."""


def run(
    model: LanguageModel, prompt: str, *, max_tokens: int = 200, seconds: float = 40.0, seed: int | None = None
) -> None:
    """All of it, on the console; `seconds` of training, 0 for none."""
    console = Console()
    console.rule("Text written with spikes")
    layers = write(console, model, prompt, max_tokens, seed)
    console.rule("Who fired")
    console.print(activity_table(layers, model.config) if layers else "no neurons: this model is continuous")
    if isinstance(model, EventModel):
        console.rule("What silence saved")
        console.print(silence_table(model, prompt, max_tokens, seed))
    if seconds > 0:
        console.rule("A small spiking model learns Python")
        learn(console, seconds)
    console.print("To write on in a browser, and to see who fires: pip install 'spikegpt[serve]', then spikegpt serve")


def write(
    console: Console, model: LanguageModel, prompt: str, max_tokens: int, seed: int | None
) -> list[LayerActivity]:
    """Stream text with the speed and the spike rate below it; what every layer fired."""
    text, below = Text(prompt, style="bold"), Text(style="dim")
    with Live(Group(text, below), console=console, vertical_overflow="visible", refresh_per_second=8):
        begun, shown = time.perf_counter(), 0.0
        with model.meter() as meter:
            generation = generate(model, prompt, max_tokens=max_tokens, seed=seed)
            for piece in generation:
                text.append(piece, style="not bold")
                if (now := time.perf_counter()) - shown > 0.2:
                    shown = now
                    below.plain = _speed(generation.tokens, now - begun, meter)
        below.plain = _speed(generation.tokens, time.perf_counter() - begun, meter)
    if not console.is_terminal:
        console.print()
    return meter.layers()


def activity_table(layers: list[LayerActivity], config: ModelConfig) -> Table:
    """One row per layer; the neurons in front of the matrices of one mix are counted together."""
    table = Table("layer", box=None, pad_edge=False)
    for heading in ("neurons", "firing rate", "dead", "saturated"):
        table.add_column(heading, justify="right")
    for name, members in _grouped(layers, config):
        neurons = sum(layer.neurons for layer in members)
        shares = (
            sum(getattr(layer, share) * layer.neurons for layer in members) / neurons
            for share in ("rate", "dead", "saturated")
        )
        table.add_row(name, f"{neurons:,}", *(f"{share:.1%}" for share in shares))
    return table


def silence_table(model: EventModel, prompt: str, max_tokens: int, seed: int | None) -> Table:
    """A text written with every weight read, and one with those of neurons that fired: a token's work and the speeds."""
    speeds = {}
    for dense in (True, False):
        begun = time.perf_counter()
        with model.meter(neurons=False) as meter:
            generation = generate(model.dense() if dense else model, prompt, max_tokens=max_tokens, seed=seed)
            for _ in generation:
                pass
        speeds[dense] = generation.tokens / (time.perf_counter() - begun)
    products = sum(site.weights for site in sites(model.config))
    done = meter.activity * products
    table = Table("per token", box=None, pad_edge=False)
    for heading in ("every weight", "where a neuron fired", ""):
        table.add_column(heading, justify="right")
    table.add_row("products", f"{products:,}", f"{done:,.0f}", f"{products - done:,.0f} not done")
    ratio = f"{speeds[False] / speeds[True]:.1f}x"
    table.add_row("tokens/s, sampling included", f"{speeds[True]:.0f}", f"{speeds[False]:.0f}", ratio)
    return table


def learn(console: Console, seconds: float) -> None:
    """Train for about that long on the sources of Python's standard library; bits per byte before and after."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = _standard_library(Path(folder))
        assert corpus.valid is not None
        held_out = np.asarray(corpus.valid.ids[:HELD_OUT])
        model, config = _planned(corpus, seconds)
        console.print(
            f"{corpus.train.n_bytes / 1e6:.1f} MB of source, {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M "
            f"parameters, {config.steps} steps of {config.batch_size} x {SHAPE.context} bytes"
        )
        before = bits_on_tokens(model, held_out, len(held_out))
        result = fit_text(model, ByteTokenizer(), corpus.train, None, config, Path(folder) / "run")
        if result["interrupted"]:
            raise KeyboardInterrupt
        after = bits_on_tokens(model, held_out, len(held_out))
        del corpus
    console.print(
        f"held-out text: [bold]{before.bits_per_byte:.2f}[/] bits per byte before, [bold]{after.bits_per_byte:.2f}[/] "
        f"after; {after.spike_rate:.0%} of the neurons fire"
    )
    model.tokenizer = ByteTokenizer()
    console.print(Text("def " + "".join(generate(model, "def ", max_tokens=120, seed=0, temperature=0.6)), style="dim"))


def _standard_library(folder: Path) -> Corpus:
    """The modules of the standard library (not its packages) as tokens, one byte each."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    if not sources:
        raise UserError(
            "this Python comes without its library's sources; train on text of yours: spikegpt train --help"
        )
    return prepare(sources, ByteTokenizer(), folder, valid=0.02, errors="replace", progress=False)


def _planned(corpus: Corpus, seconds: float) -> tuple[SpikeGPT, TrainConfig]:
    """A new model, and as many steps as fit in the time on this machine."""
    torch.manual_seed(0)
    model = SpikeGPT(SHAPE)
    windows = Windows(corpus.train, 16, SHAPE.context, seed=0)
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        inputs, targets = windows.next_batch()
        loss_fn(model(inputs)[0], targets).backward()
        times.append(time.perf_counter() - begun)
        model.zero_grad()
    # The first step warms up; an optimiser's step comes on top.
    steps = max(10, int(seconds / (1.15 * float(np.median(times[1:])))))
    settings = dict(steps=steps, batch_size=16, lr=4e-3, warmup=min(30, steps // 5), log_every=10)
    return model, TrainConfig(**settings, eval_every=0, save_every=0)  # pyright: ignore[reportArgumentType]


def _grouped(layers: list[LayerActivity], config: ModelConfig) -> Iterator[tuple[str, list[LayerActivity]]]:
    groups: dict[str, list[LayerActivity]] = {}
    in_front = sites_by_neuron(config)
    for layer in layers:
        site = in_front.get(layer.name)
        groups.setdefault((site and site.mix) or layer.name, []).append(layer)
    yield from groups.items()


def _speed(tokens: int, seconds: float, meter: Meter) -> str:
    return (
        f"{tokens} tokens · {tokens / max(seconds, 1e-9):.0f} tokens/s · {meter.rate:.1%} of neurons fire · "
        f"{meter.activity:.1%} of weights read"
    )

"""A trained event-driven model end to end, beside itself with every weight read and in float32.

python -m benchmarks.trained [--model DIR] [--json FILE] [--quick]: the shipped model by default; text is written with the
tokenizer, sampling and Python included, the four ways taking turns so that their ratios hold when the machine is busy.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from benchmarks.decode import generated_seconds
from benchmarks.table import alone, make_parser, median, report
from spikegpt.config import preset
from spikegpt.engine import EventModel
from spikegpt.loading import load
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer

NOTE = "Goal: events at 3 times the float32 model in PyTorch. Batch 1; the same text is written by all four."
PROMPT = "It was a dark night, and"
EVENTS, DENSE, PLAIN = "events, 8 bits", "every weight, 8 bits", "float32, PyTorch"


def float_model(directory: str | None, backend: str, quick: bool) -> SpikeGPT:
    """The model in float32, which with backend="reference" is plain PyTorch; a `quick` one is untrained."""
    if not quick:
        return load(directory, engine="float", backend=backend)
    model = SpikeGPT(preset("tiny", spikes="before"), backend=backend).eval()
    model.tokenizer = ByteTokenizer()
    return model


def measure(directory: str | None, threads: int, quick: bool) -> list[dict[str, Any]]:
    """The rows of one number of threads."""
    torch.set_num_threads(threads)
    tokens, repeats = (8, 1) if quick else (200, 5)
    ours = float_model(directory, "auto", quick)
    engine = EventModel.of(ours, threads=threads)
    ways = {
        EVENTS: engine, DENSE: engine.dense(), "float32, our products": ours, PLAIN: float_model(directory, "reference", quick)
    }  # fmt: skip
    with engine.meter(neurons=False) as meter:
        generated_seconds(engine, tokens, PROMPT)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, model in ways.items():
            rates[way].append(1 / generated_seconds(model, tokens, PROMPT))
    middle = {way: median(sorted(values)) for way, values in rates.items()}
    return [
        {
            "threads": threads, "how": way, "weights read": meter.activity if way == EVENTS else 1.0, "tokens/s": rate,
            "times PyTorch": rate / middle[PLAIN],
        }
        for way, rate in middle.items()
    ]  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", help="an event-driven model's directory (default: the shipped one)")
    given = parser.parse_args()
    rows = []
    for threads in sorted({1, min(2, os.cpu_count() or 1)}):
        rows += alone(measure, given.model, threads, given.quick)
    report("A trained model writes, sampling and tokenizer included", rows, given.json, note=NOTE)


if __name__ == "__main__":
    main()

"""A trained event-driven model end to end, beside itself with every weight read and in float32.

python -m benchmarks.trained [--model DIR] [--json FILE] [--quick]: the shipped model by default; text is written with the
tokenizer, sampling and Python included, the four ways taking turns so that their ratios hold when the machine is busy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.table import alone, make_parser, median, report
from spikegpt.checkpoint import load
from spikegpt.config import preset
from spikegpt.engine import EventModel
from spikegpt.generation import generate
from spikegpt.model import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer

NOTE = "Goal: events at 3 times the float32 model in PyTorch. Batch 1; the same text is written by all four."
PROMPT = "It was a dark night, and"


def float_model(directory: str | None, backend: str) -> SpikeGPT:
    """The model in float32, which with backend="reference" is plain PyTorch; for None, an untrained one."""
    if directory is not None:
        return load(directory or None, engine="float", backend=backend)
    model = SpikeGPT(preset("tiny", spikes="before")).eval()
    model.tokenizer = ByteTokenizer()
    return model


def written_per_second(model: Any, tokens: int) -> float:
    """Tokens per second after the first, which reads the prompt."""
    pieces = generate(model, PROMPT, max_tokens=tokens, seed=0, stop=())
    next(pieces)
    start, already = time.perf_counter(), pieces.tokens
    for _ in pieces:
        pass
    return (pieces.tokens - already) / (time.perf_counter() - start)


def measure(directory: str | None, threads: int, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """The rows of one number of threads."""
    torch.set_num_threads(threads)
    ours, plain = float_model(directory, "auto"), float_model(directory, "reference")
    engine = EventModel.of(ours, threads=threads)

    def stepping(dense: bool) -> Callable[[], Any]:
        def ready() -> EventModel:
            engine.set_dense(dense)
            return engine

        return ready

    ways = {
        "events, 8 bits": stepping(False), "every weight, 8 bits": stepping(True),
        "float32, our products": lambda: ours, "float32, PyTorch": lambda: plain,
    }  # fmt: skip
    rates: dict[str, list[float]] = {way: [] for way in ways}
    with engine.meter(neurons=False) as meter:
        written_per_second(engine, tokens)
        activity = meter.activity
    for _ in range(repeats):
        for way, ready in ways.items():
            rates[way].append(written_per_second(ready(), tokens))
    middle = {way: median(sorted(values)) for way, values in rates.items()}
    return [
        {
            "threads": threads, "how": way, "weights read": activity if way.startswith("events") else 1.0, "tokens/s": rate,
            "times PyTorch": rate / middle["float32, PyTorch"],
        }
        for way, rate in middle.items()
    ]  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="", help="an event-driven model's directory (default: the shipped one)")
    given = parser.parse_args()
    directory, tokens, repeats = (None, 8, 1) if given.quick else (given.model, 200, 5)
    rows = []
    for threads in sorted({1, min(2, os.cpu_count() or 1)}):
        rows += alone(measure, directory, threads, tokens, repeats)
    report("A trained model writes, sampling and tokenizer included", rows, given.json, note=NOTE)


if __name__ == "__main__":
    main()

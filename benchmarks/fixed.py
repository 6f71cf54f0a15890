"""The integers-only engine against the one whose norms, averages and gates are float32, on the same weights.

python -m benchmarks.fixed [--json FILE] [--quick] [--isa NAME]: batch 1, one thread. Steps over the same tokens take turns
within a run, and their ratio is the figure. Times are the thread's own, without what other programs take of its core.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import spikegpt
from benchmarks.decode import at_a_tenth, shape_of
from benchmarks.table import alone, make_parser, median, report
from spikegpt.config import ModelConfig
from spikegpt.engine import EventModel, FixedEventModel, Stream, base
from spikegpt.engine.fixed.model import FixedModel
from spikegpt.engine.integers import IntegerModel
from spikegpt.engine.packed import read

SHIPPED = Path(spikegpt.__file__).parent / "shipped"
TEXT = "It was a dark and stormy night, and the ship lay at anchor in the bay; nobody on board spoke.\n" * 8
STEPS = 16
"""In a turn of one engine."""
GOAL = "Goal: no slower. Least: of the turns; the ratio is that of the medians of all turns."


def step_time(stream: Stream, tokens: np.ndarray) -> float:
    """Seconds of one step, the mean over the tokens."""
    start = time.thread_time_ns()
    for token in tokens:
        stream.step(int(token))
    return (time.thread_time_ns() - start) / 1e9 / len(tokens)


def compare(name: str, packed: IntegerModel, ids: np.ndarray, turns: int, isas: list[str]) -> list[dict[str, Any]]:
    """The rows of one model, one an instruction set."""
    rows, fixed = [], FixedModel.of(packed)
    for isa in isas:
        engines = EventModel(packed, threads=1, isa=isa), FixedEventModel(fixed, threads=1, isa=isa)
        streams, times = [engine.stream() for engine in engines], ([], [])
        for stream in streams:
            step_time(stream, ids)
        for turn in range(turns):
            tokens = ids[turn * STEPS % len(ids) :][:STEPS]
            for stream, found in zip(streams, times, strict=True):
                found.append(step_time(stream, tokens))
        floats, integers = (1e6 * median(sorted(found)) for found in times)
        rows.append({
            "model": name, "instructions": isa, "float elementwise, us a token": floats,
            "integers only, us a token": integers, "float / integers": floats / integers,
            "least, float": 1e6 * min(times[0]), "least, integers": 1e6 * min(times[1]),
        })  # fmt: skip
    return rows


@torch.inference_mode()
def measure_shipped(turns: int, isas: list[str]) -> list[dict[str, Any]]:
    """The model in the package, reading English."""
    packed, tokenizer = read(SHIPPED)
    return compare("shipped, 6 x 256", packed, np.asarray(tokenizer.encode(TEXT))[:128], turns, isas)


@torch.inference_mode()
def measure_random(name: str, config: ModelConfig, turns: int, isas: list[str]) -> list[dict[str, Any]]:
    """Weights and tokens at random, a tenth of the weights read."""
    packed = at_a_tenth(config)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=128)
    return compare(f"random, {name}", packed, ids, turns, isas)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--isa", nargs="+", default=base._engine.instruction_sets() if base._engine else [])
    given = parser.parse_args()
    name, large = shape_of(given.quick, vocab_size=4096)
    rows = alone(measure_shipped, 4 if given.quick else 200, given.isa)
    rows += alone(measure_random, name, large, 4 if given.quick else 60, given.isa)
    report("Integers only against float elementwise, 8-bit weights, one thread", rows, given.json, note=GOAL)


if __name__ == "__main__":
    main()

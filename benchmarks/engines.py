"""Several engines of one thread each against one engine of as many threads, over the same weights: what a server begins with.

python -m benchmarks.engines [--json FILE] [--quick] [--threads 2] [--turns N] [--rounds N]: every engine has a Python thread,
which writes its share of the texts in turns, sampling included, as a worker of `spikegpt serve` does. The two ways take turns
within a run, and the figure is the median of their ratios. Wall times: it wants as many idle cores as threads.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.decode import at_a_tenth, shape_of
from benchmarks.table import alone, make_parser, median, report
from spikegpt.config import ModelConfig
from spikegpt.engine import EventModel
from spikegpt.engine.integers import IntegerModel
from spikegpt.engine.packed import read
from spikegpt.generation.sampling import Sampling
from spikegpt.loading import SHIPPED

NOTE = (
    "`spikegpt serve` has one engine a core. One text is written by one of the engines; the others have nothing to do."
)


def tokens_per_second(engines: Sequence[EventModel], texts: int, turns: int) -> float:
    """Tokens a second that the engines write side by side, each its share of the texts."""
    shares = [range(first, texts, len(engines)) for first in range(len(engines))]
    pairs = [(engine, share) for engine, share in zip(engines, shares, strict=True) if share]
    times: list[float] = []
    gate = threading.Barrier(len(pairs), action=lambda: times.append(time.perf_counter()))

    def write(engine: EventModel, numbers: range) -> None:
        sequences = [engine.sequence([1 + number], sampling=Sampling(seed=number)) for number in numbers]
        engine.advance(sequences)
        gate.wait()
        for _ in range(turns):
            engine.advance(sequences)
        times.append(time.perf_counter())

    threads = [threading.Thread(target=write, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return texts * turns / (max(times) - times[0])


@torch.inference_mode()
def compare(
    name: str, packed: IntegerModel, threads: int, texts: Sequence[int], turns: int, rounds: int
) -> list[dict[str, Any]]:
    """The rows of one model, one a number of texts."""
    sys.setswitchinterval(0.0005)  # as the server's
    one, many = [EventModel(packed, threads=threads)], [EventModel(packed, threads=1) for _ in range(threads)]
    rows = []
    for count in texts:
        rates = [(tokens_per_second(one, count, turns), tokens_per_second(many, count, turns)) for _ in range(rounds)]
        ratios = sorted(apart / together for together, apart in rates)
        rows.append({
            "shape": name, "texts": count, f"one engine of {threads} threads, tokens/s": median(sorted(a for a, _ in rates)),
            f"{threads} engines of one thread, tokens/s": median(sorted(b for _, b in rates)),
            f"{threads} / one": median(ratios), "least": ratios[0], "most": ratios[-1],
        })  # fmt: skip
    return rows


def measure_shipped(*how: Any) -> list[dict[str, Any]]:
    """The model in the package."""
    return compare("shipped, 6 x 256", read(SHIPPED)[0], *how)


def measure_random(name: str, config: ModelConfig, *how: Any) -> list[dict[str, Any]]:
    """Weights at random, a tenth of them read."""
    return compare(name, at_a_tenth(config), *how)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 2, 8, 64])
    parser.add_argument("--turns", type=int, default=40, help="tokens of each text in a round")
    parser.add_argument("--rounds", type=int, default=7, help="of both ways")
    given = parser.parse_args()
    name, config = shape_of(given.quick)
    if given.quick:
        given.turns, given.rounds = 4, 2
    how = given.threads, given.texts, given.turns, given.rounds
    rows = alone(measure_random, f"{name}, 10%", config, *how) + alone(measure_shipped, *how)
    report("Engines side by side, 8-bit weights", rows, given.json, note=NOTE)


if __name__ == "__main__":
    main()

"""Text written end to end against the engine's bare steps over the same tokens: what choosing and decoding them costs.

python -m benchmarks.writing [--json FILE] [--quick] [--threads 1 2] [--tokens N] [--rounds N]: batch 1, random weights, 10% of
them read. `generate`, with sampler and tokenizer, and `stream.step` take turns, and the figure is the median of their ratios.
With one thread times are that thread's own, without what other programs take of its core; with more they are wall times.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.decode import a_tokenizer, at_a_tenth, generated_seconds, shape_of
from benchmarks.table import alone, make_parser, median, report
from spikegpt.config import ModelConfig
from spikegpt.engine import EventModel
from spikegpt.generation.sampling import Sampling

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 0.8},
    "top-k 40": {"temperature": 0.8, "top_k": 40},
    "top-k 5000": {"temperature": 0.8, "top_k": 5000},
    "top-p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "all": {"temperature": 0.8, "top_k": 200, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1},
}
PROMPT = "a"
GOAL = (
    "Goal: 85% of the bare steps' rate with any settings. Logits of random weights are flat: at V = 50277 top-p keeps tens of "
    "thousands of tokens."
)


def chosen(engine: EventModel, tokens: int, how: dict[str, Any]) -> list[int]:
    """The tokens that the settings choose after the prompt."""
    assert engine.tokenizer is not None
    text = engine.sequence(engine.tokenizer.encode(PROMPT), sampling=Sampling(seed=0, **how))
    return [engine.advance([text])[0] for _ in range(tokens)]


def step_seconds(engine: EventModel, ids: list[int], clock: Callable[[], float]) -> float:
    """Seconds of a bare step, the mean over these tokens after the prompt."""
    assert engine.tokenizer is not None
    stream = engine.stream()
    stream.read(engine.tokenizer.encode(PROMPT))
    start = clock()
    for token in ids:
        stream.step(token)
    return (clock() - start) / len(ids)


@torch.inference_mode()
def measure(name: str, config: ModelConfig, threads: list[int], tokens: int, rounds: int) -> list[dict[str, Any]]:
    """The rows of one model, one a number of threads and settings."""
    packed = at_a_tenth(config)
    rows = []
    for count in threads:
        engine = EventModel(packed, a_tokenizer(config.vocab_size), threads=count)
        clock = time.thread_time if count == 1 else time.perf_counter
        for sampling, how in SETTINGS.items():
            ids = chosen(engine, tokens, how)
            steps, written = [], []
            for _ in range(rounds):
                steps.append(step_seconds(engine, ids, clock))
                written.append(generated_seconds(engine, tokens, PROMPT, clock, **how))
            shares = sorted(step / whole for step, whole in zip(steps, written, strict=True))
            rows.append({
                "shape": name, "threads": count, "sampling": sampling, "bare steps/s": 1 / median(sorted(steps)),
                "written/s": 1 / median(sorted(written)), "share of the steps": median(shares), "least": shares[0],
                "most": shares[-1],
            })  # fmt: skip
    return rows


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, min(2, os.cpu_count() or 1)}))
    parser.add_argument("--tokens", type=int, default=200, help="in a text")
    parser.add_argument("--rounds", type=int, default=11, help="of a text and its bare steps")
    given = parser.parse_args()
    name, config = shape_of(given.quick)
    if given.quick:
        given.tokens, given.rounds = 20, 2
    rows = alone(measure, name, config, given.threads, given.tokens, given.rounds)
    report("Writing end to end beside bare steps, 8-bit weights, batch 1", rows, given.json, note=GOAL)


if __name__ == "__main__":
    main()

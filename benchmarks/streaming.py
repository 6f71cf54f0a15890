"""Time per token and memory, of reading and of writing, after a thousand tokens of text and after a hundred thousand.

python -m benchmarks.streaming [--json FILE] [--quick] [--spikes after]: 6 x 256 over bytes. One text is read as `spikegpt
generate` reads a prompt, its state kept at several lengths; then, from each of these states in turn and many times over,
a piece is read and a few tokens written, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.table import make_parser, median, peak_memory, report
from spikegpt.config import ModelConfig
from spikegpt.generation.decode import PREFILL, prefill
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.model.state import State

LENGTHS = (1_000, 3_000, 10_000, 30_000, 100_000)
ROUNDS = 41
WRITTEN = 8
"""Tokens written in each round."""


@torch.inference_mode()
def measure(config: ModelConfig, lengths: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """A row for each length of the text before."""
    model = SpikeGPT(config).eval()
    text = torch.randint(config.vocab_size, (lengths[-1] + PREFILL,)).tolist()
    state, done, states, peaks = model.init_state(1), 0, {}, {}
    for length in lengths:
        state = prefill(model, text[done:length], state)
        states[length], peaks[length], done = state, peak_memory(), length
    reading: dict[int, list[float]] = {length: [] for length in lengths}
    writing: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in range(rounds):
        for length in lengths:
            begun = time.perf_counter()
            after = prefill(model, text[length : length + PREFILL], states[length])
            reading[length].append((time.perf_counter() - begun) / PREFILL)
            writing[length].append(written(model, after))
    return [
        {
            "tokens before": length,
            "read, us a token": 1e6 * median(sorted(reading[length])),
            "written, us a token": 1e6 * median(sorted(writing[length])),
            "state, kB": sum(tensor.nbytes for tensor in states[length].named().values()) / 1e3,
            "peak memory, MB": peaks[length] / 1e6,
        }
        for length in lengths
    ]


def written(model: SpikeGPT, state: State) -> float:
    """Median seconds of a step of decoding."""
    times, ids = [], torch.zeros(1, 1, dtype=torch.int64)
    for _ in range(WRITTEN):
        begun = time.perf_counter()
        logits, state = model(ids, state)
        ids = logits[:, -1].argmax(-1, keepdim=True)
        times.append(time.perf_counter() - begun)
    return median(sorted(times))


def against_first(rows: list[dict[str, Any]]) -> None:
    """Add to each row how it compares with the shortest text."""
    for name in ("read", "written"):
        key = next(key for key in rows[0] if key.startswith(name))
        for row in rows:
            row[f"{name}, of the first"] = row[key] / rows[0][key]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--spikes", choices=("after", "none", "before"), default="after")
    given = parser.parse_args()
    shape = {"n_layer": 2, "n_embd": 32} if given.quick else {"n_layer": 6, "n_embd": 256}
    config = ModelConfig(vocab_size=256, spikes=given.spikes, **shape)
    rows = measure(config, (20, 60) if given.quick else LENGTHS, 2 if given.quick else ROUNDS)
    against_first(rows)
    title = f"A stream of tokens, {config.n_layer} x {config.n_embd}, neurons {given.spikes}"
    report(title, rows, given.json, note="Goal: flat within 10%, and memory constant.")


if __name__ == "__main__":
    main()

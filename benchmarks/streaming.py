"""Time per token and memory, of reading and of writing, from a thousand tokens of text to a hundred thousand.

python -m benchmarks.streaming [--json FILE] [--quick] [--spikes after]: 6 x 256 over bytes; every length in a process of
its own, read in pieces as `spikegpt generate` reads a prompt, then continued by one token after another.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.table import alone, make_parser, median, peak_memory, report, seconds
from spikegpt.config import ModelConfig
from spikegpt.generation import prefill
from spikegpt.model import SpikeGPT
from spikegpt.state import State

LENGTHS = (1_000, 3_000, 10_000, 30_000, 100_000)
READ = 20_000
"""Tokens read at least, by reading a short text several times."""
WRITTEN = 200
"""Tokens written after each text."""


@torch.inference_mode()
def measure(config: ModelConfig, length: int, least: int) -> dict[str, Any]:
    """One row: a text of `length` tokens, read and continued."""
    model = SpikeGPT(config).eval()
    ids = torch.randint(config.vocab_size, (length,)).tolist()
    states = [model.init_state(1)] * 2

    def read() -> None:
        states[1] = prefill(model, ids, states[0])

    reading = median(seconds(read, max(1, least // length))) / length
    return {
        "tokens": length,
        "read, us a token": 1e6 * reading,
        "written after them, us a token": 1e6 * written(model, states[1]),
        "state, kB": sum(tensor.nbytes for tensor in states[1].named().values()) / 1e3,
        "peak memory, MB": peak_memory() / 1e6,
    }


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
    lengths = LENGTHS[:2] if given.quick else LENGTHS
    rows = [alone(measure, config, length, 1 if given.quick else READ) for length in lengths]
    against_first(rows)
    title = f"A stream of tokens, {config.n_layer} x {config.n_embd}, neurons {given.spikes}"
    report(title, rows, given.json, note="Goal: flat within 10%, and memory constant.")


if __name__ == "__main__":
    main()

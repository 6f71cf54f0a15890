"""One set of events for key, value and receptance, beside three neurons that fire alike: the same weights, logits to the bit.

python -m benchmarks.shared [--json FILE] [--quick] [--threads 1 2] [--bits 8 4] [--tokens N]: random weights, a tenth of them
read a token. The two engines take turns of a hundred tokens, and the ratio is that of their median steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.decode import at_a_tenth, shape_of, step_times
from benchmarks.table import alone, make_parser, median, report
from spikegpt.config import EventConfig, ModelConfig
from spikegpt.engine import EventModel

TURN = 100
SMALL = ModelConfig(n_layer=6, n_embd=256, vocab_size=4096, spikes="before", event=EventConfig(shared=True))


@torch.inference_mode()
def measure(name: str, config: ModelConfig, threads: int, bits: int, tokens: int) -> dict[str, Any]:
    """One row."""
    packed = at_a_tenth(config, bits)
    engines = [EventModel(each, threads=threads) for each in (packed, packed.apart())]
    streams, times = [engine.stream() for engine in engines], ([], [])
    ids = np.random.default_rng(0).integers(0, config.vocab_size, tokens)
    for begin in range(0, tokens, TURN):
        for stream, mine in zip(streams, times, strict=True):
            mine += step_times(stream, ids[begin : begin + TURN])
    shared, apart = (1e6 * median(sorted(each)) for each in times)
    return {
        "shape": name, "bits": bits, "threads": threads, "apart, us a token": apart, "shared, us a token": shared,
        "apart / shared": apart / shared,
    }  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--bits", type=int, nargs="+", choices=(8, 4), default=[8, 4])
    parser.add_argument("--tokens", type=int, default=1000)
    given = parser.parse_args()
    shapes = [shape_of(given.quick, event=EventConfig(shared=True))]
    if given.quick:
        given.tokens = 20
    else:
        shapes.insert(0, ("6 x 256, V = 4096", SMALL))
    rows = [
        alone(measure, *shape, threads, bits, given.tokens)
        for shape in shapes for threads in given.threads for bits in given.bits
    ]  # fmt: skip
    report("Shared events, a tenth of the weights read", rows, given.json)


if __name__ == "__main__":
    main()

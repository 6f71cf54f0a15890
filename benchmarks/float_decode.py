"""Writing one token after another in float32, against the speed at which this machine reads memory.

python -m benchmarks.float_decode [--json FILE] [--quick]: batch 1 at 18 x 768, V = 50277 and at 12 x 512, V = 256. Every
weight is read for every token, so their bytes over the seconds are compared with a large sum's in the same process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from benchmarks.decode import random_model
from benchmarks.table import alone, make_parser, median, read_rate, report, seconds
from spikegpt import ops
from spikegpt.config import ModelConfig, preset
from spikegpt.model.layers import Linear
from spikegpt.model.spikegpt import SpikeGPT

Step = Callable[[], Any]


def model_step(model: SpikeGPT) -> Step:
    """One token of the model, its state carried."""
    ids, states = torch.zeros(1, 1, dtype=torch.int64), [model.init_state(1)]

    def step() -> None:
        _, states[0] = model(ids, states[0])

    return step


def products_step(model: SpikeGPT) -> Step:
    """The model's matrix products and nothing else."""
    pairs = [(m, torch.randn(1, 1, m.in_features)) for m in model.modules() if isinstance(m, Linear)]
    return lambda: [matrix(x) for matrix, x in pairs]


@contextlib.contextmanager
def torch_products() -> Iterator[None]:
    """Leave every matrix product to PyTorch."""
    with mock.patch.object(ops, "FEW_ROWS", 0):
        yield


@torch.inference_mode()
def measure(name: str, config: ModelConfig, repeats: int, megabytes: int) -> list[dict[str, Any]]:
    """The rows of one model: with our products and with PyTorch's, whole and bare."""
    model = random_model(config)
    size = 4 * model.matrix_parameters()
    ways = {"model": model_step(model), "products alone": products_step(model)}
    rows = []
    for products, chosen in (("ours", contextlib.nullcontext), ("F.linear", torch_products)):
        for way, step in ways.items():
            with chosen():
                before = read_rate(megabytes)
                taken = median(seconds(step, repeats))
                after = read_rate(megabytes)
            ceiling = max(before, after)
            rows.append({
                "shape": name, "what": way, "products": products, "tokens/s": 1 / taken, "ms a token": 1e3 * taken,
                "weights, GB/s": size / taken / 1e9, "large read, GB/s": ceiling / 1e9,
                "share of the read": size / taken / ceiling,
            })  # fmt: skip
    return rows


def main() -> None:
    given = make_parser(__doc__).parse_args()
    shapes = {"18 x 768, V = 50277": preset("216m"), "12 x 512, V = 256": preset("46m")}
    if given.quick:
        shapes = {"tiny": preset("tiny")}
    effort = (3, 16) if given.quick else (30, 512)
    rows = [row for name, config in shapes.items() for row in alone(measure, name, config, *effort)]
    report("Decoding in float32, batch 1", rows, given.json, note="Goal: 65% of the read at 18 x 768.")


if __name__ == "__main__":
    main()

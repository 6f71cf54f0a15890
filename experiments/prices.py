"""What the smallest events of each matrix are worth: nats lost per weight not read, and the emphasis that would even it out.

python experiments/prices.py MODEL --data FILE [--tokens 16384]

Of an event-driven model, the smallest events in front of one matrix after the other are left out (hard: nothing else
changes) while it reads held-out text. A matrix whose events are dear should fire more often, one whose events are cheap
less; the last line is that, as `event.emphasis` takes it: with half of the step, for prices move with shares, and from
prices pooled over blocks and kinds, for those of single matrices are mostly noise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST = 2.0
"""By how much a single step may change a share, up or down."""


@dataclass(frozen=True)
class Price:
    """One matrix."""

    name: str
    kind: str
    block: int | None
    """None for the head."""
    nats: float
    """Lost per token without its smallest events."""
    error: float
    """Standard error of that, over windows of the text."""
    saved: float
    """Weights not read per token, as a share of all weights."""

    @property
    def each(self) -> float:
        """Nats per percent of all weights; 0 where nothing was silenced."""
        return self.nats / (100 * self.saved) if self.saved else 0.0


@contextlib.contextmanager
def without_smallest(neuron: Any) -> Iterator[list[int]]:
    """Leave out the smallest events that `neuron` sends; the list receives how many, one number a call."""
    smallest, silenced = neuron.config.smallest, []

    def hook(_module: Any, _inputs: Any, output: tuple[Any, Any]) -> tuple[Any, Any]:
        events, membrane = output
        small = events.abs() == smallest
        silenced.append(int(small.sum()))
        return events.masked_fill(small, 0), membrane

    handle = neuron.register_forward_hook(hook)
    try:
        yield silenced
    finally:
        handle.remove()


def prices(model: Any, windows: Any) -> list[Price]:
    """The price of every matrix over windows [N, T + 1] of ids, each read from an empty state."""
    import torch
    import torch.nn.functional as F

    from spikegpt.model.sites import sites

    def losses() -> torch.Tensor:
        logits = model(windows[:, :-1])[0]
        return F.cross_entropy(logits.transpose(1, 2), windows[:, 1:], reduction="none").mean(1)

    total, tokens, found = model.matrix_parameters(), windows[:, 1:].numel(), []
    with torch.inference_mode():
        whole = losses()
        for site in sites(model.config):
            assert site.neuron is not None
            with without_smallest(model.get_submodule(site.neuron)) as silenced:
                lost = losses() - whole
            error = float(lost.std()) / math.sqrt(len(lost))
            saved = sum(silenced) * site.outputs / tokens / total
            found.append(Price(site.name, site.kind, site.block, float(lost.mean()), error, saved))
    return found


def pooled(found: list[Price]) -> dict[str, float]:
    """A steadier price of each matrix: the mean of its block's and its kind's, each over all that was silenced there."""
    blocks = {price.block: _together([p for p in found if p.block == price.block]) for price in found}
    kinds = {price.kind: _together([p for p in found if p.kind == price.kind]) for price in found}
    return {price.name: (blocks[price.block] + kinds[price.kind]) / 2 for price in found}


def _together(found: list[Price]) -> float:
    saved = sum(price.saved for price in found)
    return sum(price.nats for price in found) / (100 * saved) if saved else 0.0


def evened(emphasis: dict[str, float], found: list[Price]) -> dict[str, float]:
    """The emphasis with half of a step towards equal prices: shares times the root of the price over the mean price."""
    worth = {name: max(each, 0.0) for name, each in pooled(found).items()}
    spent = sum(price.saved for price in found)
    mean = sum(worth[price.name] * price.saved for price in found) / spent if spent else 0.0
    if mean == 0:
        return emphasis
    factor = {name: min(max(math.sqrt(each / mean), 1 / MOST), MOST) for name, each in worth.items()}
    return {name: round(share * factor[name], 4) for name, share in emphasis.items()}


def main() -> None:
    """Measure, print a table and the emphasis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16384)
    arguments = parser.parse_args()
    import torch

    from spikegpt.loading import load
    from spikegpt.model.allocation import emphasis_of

    model = load(arguments.model, engine="float").eval()
    context = model.config.context
    assert model.tokenizer is not None
    count = arguments.tokens // context
    ids = model.tokenizer.encode(arguments.data.read_text()[: 8 * count * (context + 1)])
    windows = torch.tensor(ids[: count * (context + 1)]).long().view(-1, context + 1)
    found = prices(model, windows)
    print(f"{'matrix':24}{'% of weights':>14}{'nats':>10}{'error':>9}{'nats per %':>12}")
    for price in sorted(found, key=lambda price: -price.each):
        print(f"{price.name:24}{price.saved:>14.3%}{price.nats:>10.5f}{price.error:>9.5f}{price.each:>12.4f}")
    print(json.dumps(evened(emphasis_of(model.config), found)))


if __name__ == "__main__":
    main()

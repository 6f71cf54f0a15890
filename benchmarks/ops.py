"""The operators against the plain PyTorch loops, forward and forward + backward, in one run.

python -m benchmarks.ops [--json FILE] [--batch 8] [--time 1024] [--channels 512]: milliseconds and ratios, beside the time
of copying the same tensor. First checks that both backends agree: no speed is reported for a wrong result.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.table import report
from spikegpt import ops

Operator = Callable[..., Tensor]


def operators(batch: int, length: int, channels: int) -> dict[str, tuple[Operator, list[Tensor]]]:
    """Each operator as a function of its inputs, which all get gradients."""
    x, v = torch.randn(batch, length, channels) * 1.5, torch.randn(batch, length, channels)
    decay, first, leak = -torch.rand(channels) - 0.01, torch.randn(channels), torch.rand(channels) * 0.9
    one = torch.ones(channels)
    return {
        "wkv": (lambda *inputs, backend: ops.wkv(*inputs, backend=backend)[0], [decay, first, x, v]),
        "lif": (lambda x, backend: ops.lif(x, backend=backend)[0], [x]),
        "event": (lambda x, leak, backend: ops.event(x, one, one / 4, leak, backend=backend)[0], [x, leak]),
        "event, memoryless": (lambda x, backend: ops.event(x, one, one / 4, backend=backend)[0], [x]),
    }


def check(operator: Operator, inputs: list[Tensor]) -> None:
    """Both backends give the same, on the first tokens."""
    few = [x[:, :64] if x.dim() == 3 else x for x in inputs]
    expected, actual = (operator(*few, backend=backend) for backend in ("reference", "native"))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def milliseconds(function: Callable[[], Any], repeats: int) -> float:
    """Median of a few calls, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * sorted(times)[repeats // 2]


def measure(operator: Operator, inputs: list[Tensor], backend: str, repeats: int) -> tuple[float, float]:
    """Milliseconds of the forward pass and of forward + backward."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    cotangent = torch.randn_like(operator(*inputs, backend="native"))

    def both() -> None:
        torch.autograd.grad(operator(*leaves, backend=backend), leaves, cotangent)

    return milliseconds(lambda: operator(*inputs, backend=backend), repeats), milliseconds(both, repeats)


def rows(batch: int, length: int, channels: int) -> list[dict[str, Any]]:
    """One row an operator."""
    table = []
    target = torch.empty(batch, length, channels)
    copy = milliseconds(lambda: target.copy_(torch.ones(1).expand_as(target)), 5)
    for name, (operator, inputs) in operators(batch, length, channels).items():
        check(operator, inputs)
        forward, both = measure(operator, inputs, "native", 9)
        slow_forward, slow_both = measure(operator, inputs, "reference", 1)
        table.append(
            {
                "operator": name,
                "forward ms": forward,
                "fwd + bwd ms": both,
                "loop forward ms": slow_forward,
                "loop fwd + bwd ms": slow_both,
                "forward ratio": slow_forward / forward,
                "fwd + bwd ratio": slow_both / both,
                "one tensor written, ms": copy,
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE")
    for name, default in (("batch", 8), ("time", 1024), ("channels", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.manual_seed(0)
    title = f"Operators at [{given.batch}, {given.time}, {given.channels}], {torch.get_num_threads()} threads"
    report(title, rows(given.batch, given.time, given.channels), given.json)


if __name__ == "__main__":
    main()

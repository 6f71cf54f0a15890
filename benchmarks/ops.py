"""The operators against plain PyTorch, forward and forward + backward, in one run.

python -m benchmarks.ops [--json FILE] [--batch 8] [--time 1024] [--channels 512]: milliseconds, and how many times
longer the reference backend takes. For lif also the textbook loop `for t: y[t], state = step(x[:, t], state)`, whose
backward pass fills a whole tensor for each token (as spikingjelly's multi-step neurons do). Both backends are checked
to agree first: no speed is reported for a wrong result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.table import make_parser, report
from spikegpt import ops

Operator = Callable[..., tuple[Tensor, Tensor]]
"""(streams [B, T, C]..., constants [C]..., state, backend) -> output, state"""


def wkv(
    k: Tensor, v: Tensor, decay: Tensor, first: Tensor, state: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    return ops.wkv(decay, first, k, v, state, backend=backend)


def lif(x: Tensor, membrane: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    return ops.lif(x, membrane, backend=backend)


def event(x: Tensor, leak: Tensor, membrane: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    one = torch.ones_like(leak)
    return ops.event(x, one, one / 4, leak, membrane, backend=backend)


def memoryless_event(x: Tensor, _: None, backend: str) -> tuple[Tensor, Tensor]:
    one = x.new_ones(x.shape[-1])
    return ops.event(x, one, one / 4, backend=backend)


def cases(batch: int, length: int, channels: int) -> list[tuple[Operator, list[Tensor]]]:
    """Each operator and its inputs, which all get gradients."""
    x, v = torch.randn(batch, length, channels) * 1.5, torch.randn(batch, length, channels)
    decay, first, leak = -torch.rand(channels) - 0.01, torch.randn(channels), torch.rand(channels) * 0.9
    return [(wkv, [x, v, decay, first]), (lif, [x]), (event, [x, leak]), (memoryless_event, [x])]


def whole(operator: Operator, inputs: list[Tensor], backend: str) -> Tensor:
    """The operator over all tokens at once."""
    return operator(*inputs, None, backend)[0]


def stepped(operator: Operator, inputs: list[Tensor], backend: str) -> Tensor:
    """The operator one token after another."""
    outputs, state = [], None
    for t in range(inputs[0].shape[1]):
        y, state = operator(*(x[:, t : t + 1] if x.dim() == 3 else x for x in inputs), state, backend)
        outputs.append(y)
    return torch.cat(outputs, 1)


def check(operator: Operator, inputs: list[Tensor]) -> None:
    """Both backends give the same on the first tokens."""
    few = [x[:, :64] if x.dim() == 3 else x for x in inputs]
    torch.testing.assert_close(whole(operator, few, "native"), whole(operator, few, "reference"), rtol=1e-4, atol=1e-5)


def milliseconds(function: Callable[[], Any], repeats: int) -> float:
    """Median of a few calls; of more than one, the first is to warm up."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    measured = sorted(times[1:] or times)
    return 1e3 * measured[len(measured) // 2]


def measure(run: Callable[[list[Tensor]], Tensor], inputs: list[Tensor], repeats: int) -> tuple[float, float]:
    """Milliseconds of the forward pass and of forward + backward."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    cotangent = torch.randn_like(inputs[0])
    forward = milliseconds(lambda: run(inputs), repeats)
    return forward, milliseconds(lambda: torch.autograd.grad(run(leaves), leaves, cotangent), repeats)


def row(operator: Operator, inputs: list[Tensor]) -> dict[str, Any]:
    """What one operator takes, and how many times longer the others do."""
    check(operator, inputs)
    forward, both = measure(lambda x: whole(operator, x, "native"), inputs, 11)
    reference_forward, reference_both = measure(lambda x: whole(operator, x, "reference"), inputs, 1)
    figures = {
        "operator": operator.__name__,
        "forward, ms": forward,
        "fwd + bwd, ms": both,
        "reference / native: forward": reference_forward / forward,
        "fwd + bwd": reference_both / both,
    }
    if operator is lif:
        loop_forward, loop_both = measure(lambda x: stepped(operator, x, "reference"), inputs, 1)
        figures |= {"loop / native: forward": loop_forward / forward, "loop: fwd + bwd": loop_both / both}
    return figures


def main() -> None:
    parser = make_parser(__doc__)
    for name, default in (("batch", 8), ("time", 1024), ("channels", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.manual_seed(0)
    shape = (2, 64, 32) if given.quick else (given.batch, given.time, given.channels)
    rows = [row(operator, inputs) for operator, inputs in cases(*shape)]
    report(f"Operators at {list(shape)}, {torch.get_num_threads()} threads", rows, given.json)


if __name__ == "__main__":
    main()

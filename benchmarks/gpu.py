"""How fast a GPU runs the operators, trains and decodes, and whether it computes the right thing.

python benchmarks/gpu.py [--device cuda|cpu] [--minutes 8] [--toy] [--sections correctness kernels training decoding]

Needs PyTorch and Triton, and nothing installed: it finds the package beside itself. Prints a table a section and, as
its last line, all figures in JSON. Ceilings (copying, bf16 matrix products) are measured in the same run. A section is
left out, and says so, where the time is up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from spikegpt import ops
from spikegpt.config import ModelConfig, TrainConfig, preset
from spikegpt.generation.cuda_graph import DecodingGraph
from spikegpt.model.layers import Linear
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.training.loss import loss_fn
from spikegpt.training.optim import make_optimizer

Row = dict[str, Any]
GOALS = {"forward": 0.8, "backward": 0.7, "46m": 1_000_000, "216m": 250_000, "cost of spiking": 0.1}


class Bench:
    """A device, its clock, the time that is left, and the sizes to run at."""

    def __init__(self, device: str, minutes: float, toy: bool) -> None:
        self.device, self.toy = torch.device(device), toy
        self.end = time.monotonic() + 60 * minutes
        self.on_gpu = self.device.type == "cuda"
        self.backend = "triton" if ops.available()["triton"] is True else "auto"
        self.shape = (2, 17, 8) if toy else (32, 1024, 768)

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def wait(self) -> None:
        """Until the device is done."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], Any], repeats: int = 10, warm: int = 3) -> float:
        """Of one call: the median of `repeats`, after `warm` to compile and to warm up."""
        for _ in range(1 if self.toy else warm):
            function()
        times = []
        for _ in range(1 if self.toy else repeats):
            self.wait()
            begun = time.perf_counter()
            function()
            self.wait()
            times.append(time.perf_counter() - begun)
        return sorted(times)[len(times) // 2]

    def device_seconds(self, function: Callable[[], Any], repeats: int = 10) -> float:
        """Of one call on the device alone: it is given other work first, so that the call's launches are waiting."""
        if not self.on_gpu:
            return self.seconds(function, repeats)
        for _ in range(3):
            function()
        before = torch.ones(8192, 8192, device=self.device, dtype=torch.bfloat16)
        times = []
        for _ in range(repeats):
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.wait()
            for _ in range(3):
                before @ before
            begun.record()
            function()
            ended.record()
            self.wait()
            times.append(begun.elapsed_time(ended) / 1e3)
        return sorted(times)[len(times) // 2]

    def random(self, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal numbers, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator).to(self.device, dtype)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 matrix products over float32 weights."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def forget(self) -> None:
        """Give cached memory back."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


# Ceilings


def ceilings(bench: Bench) -> Row:
    """Bytes/s of a copy (read and written) and bf16 operations/s of a square product, in this run."""
    size = 2**16 if bench.toy else 2**28
    source, target = torch.ones(2, size, device=bench.device)
    side = 64 if bench.toy else 8192
    a = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    bandwidth = 8 * size / bench.device_seconds(lambda: target.copy_(source))
    return {"bytes/s": bandwidth, "bf16 operations/s": 2 * side**3 / bench.device_seconds(lambda: a @ a)}


# Operators: each case is its tensors and the function of them


def cases(
    bench: Bench, shape: tuple[int, int, int], dtype: torch.dtype
) -> dict[str, tuple[list[Tensor], Callable[..., Any]]]:
    """Every operator on inputs of `shape`, as `function(*tensors, backend=...)` -> tensors."""
    batch, _, channels = shape

    def big(seed: int) -> Tensor:
        return bench.random(*shape, seed=seed, dtype=dtype)

    decay, first = -bench.random(channels, seed=1).abs() - 1e-3, bench.random(channels, seed=2)
    last, leak = bench.random(batch, channels, seed=3), torch.sigmoid(bench.random(channels, seed=4))
    mixes = [torch.sigmoid(bench.random(channels, seed=5 + i)) for i in range(3)]
    threshold = bench.random(channels, seed=9).abs() + 0.3
    targets = (bench.random(*shape[:2], seed=21).abs() * 1000).long() % channels

    def events(leak: Tensor | None, x: Tensor, backend: str) -> Any:
        return ops.event(x, threshold.to(wide(x)), threshold.to(wide(x)) / 4, leak, backend=backend)[:1]

    def shifted(x: Tensor, last: Tensor, *mixes: Tensor, backend: str) -> Any:
        return ops.shift_mix(x, last, mixes, dtype=x.dtype if x.dtype == torch.float64 else dtype, backend=backend)

    def wide(x: Tensor) -> torch.dtype:
        return x.dtype if x.dtype == torch.float64 else torch.float32

    return {
        "wkv": ([decay, first, big(10), big(11)], lambda *x, backend: ops.wkv(*x, backend=backend)[:1]),
        "gated_wkv": (
            [decay, first, big(10), big(11), big(12)],
            lambda *x, backend: ops.gated_wkv(*x, dtype=x[2].dtype, backend=backend)[:1],
        ),
        "lif": ([big(13) * 2], lambda x, backend: ops.lif(x, backend=backend)[:1]),
        "lif_add": (
            [big(13) * 2, bench.random(*shape, seed=14)],
            lambda x, residual, backend: ops.lif_add(x, residual, backend=backend)[:1],
        ),
        "event, leaky": ([leak, big(15)], lambda leak, x, backend: events(leak, x, backend)),
        "event, memoryless": ([big(15)], lambda x, backend: events(None, x, backend)),
        "shift_mix": ([bench.random(*shape, seed=16), last, *mixes], shifted),
        "relu_squared": ([big(17)], lambda x, backend: [ops.relu_squared(x, backend=backend)]),
        "gate": ([big(18), big(19)], lambda opening, x, backend: [ops.gate(opening, x, backend=backend)]),
        "cross_entropy": (
            [big(20)], lambda x, backend: [ops.cross_entropy(x, targets, 1e-4, backend=backend).view(1, 1)]
        ),
    }  # fmt: skip


def gradients(outputs: Any, inputs: list[Tensor], seed: int = 20) -> list[Tensor]:
    """Of all inputs, from the same random gradients of the outputs whatever their type."""
    generator = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(o.shape, generator=generator).to(o.device, o.dtype) for o in outputs]
    return list(torch.autograd.grad(outputs, inputs, cotangents))


def correctness(bench: Bench) -> Iterator[Row]:
    """Largest error of outputs and gradients beside the reference in double precision, in shares of the largest value."""
    shape = (2, 17, 8) if bench.toy else (3, 197, 200)
    for name, (inputs, function) in cases(bench, shape, torch.float32).items():
        results = []
        for dtype, backend in ((torch.float64, "reference"), (torch.float32, bench.backend)):
            leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
            outputs = function(*leaves, backend=backend)
            results.append(([o.detach() for o in outputs], gradients(outputs, leaves)))
        (expected, expected_grads), (actual, actual_grads) = results
        # A spike within rounding of its threshold may fall on the other side: its train is left out of the comparison.
        same = torch.ones_like(expected[0], dtype=torch.bool)
        if name.startswith(("lif", "event")):
            same = ((actual[0] - expected[0]).abs() < 0.5).all(1, keepdim=True).expand_as(same)
        errors = [
            worst(a, e, same) for a, e in zip([*actual, *actual_grads], [*expected, *expected_grads], strict=True)
        ]
        flipped = (~same[:, 0]).sum().item()
        yield {
            "operator": name, "largest error": max(errors), "trains flipped": flipped,
            "right": max(errors) < 1e-4 and flipped <= same[:, 0].numel() / 1000,
        }  # fmt: skip


def worst(actual: Tensor, expected: Tensor, same: Tensor) -> float:
    """Largest difference where the trains are the `same`, in shares of the largest value."""
    if actual.shape == same.shape:
        actual, expected = actual[same], expected[same]
    elif not same.all():
        return 0.0  # a sum over trains of which some flipped
    return ((actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def kernels(bench: Bench, ceiling: Row) -> Iterator[Row]:
    """Each operator's share of the bandwidth of a copy: bytes of inputs and outputs alone, over its time."""
    for dtype in (torch.float32, torch.bfloat16):
        for name, (inputs, function) in cases(bench, bench.shape, dtype).items():
            if bench.left() < 30:
                return
            given = [x.detach() for x in inputs]
            # The residual's gradient is the output's, as it is.
            leaves = [x.requires_grad_() for x in (given[:1] if name == "lif_add" else given)]
            outputs = function(*given, backend=bench.backend)
            cotangents = [torch.ones_like(o) for o in outputs]

            def forward(given: list[Tensor] = given, function: Any = function) -> Any:
                return function(*given, backend=bench.backend)

            def backward(outputs: Any = outputs, leaves: Any = leaves, cotangents: Any = cotangents) -> Any:
                return torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True)

            ahead, back = bench.device_seconds(forward), bench.device_seconds(backward)
            # On the way back: the inputs and the outputs' gradients are read, the inputs' gradients written.
            bytes_ahead, bytes_back = size_of(given) + size_of(outputs), 2 * size_of(leaves) + size_of(outputs)
            shares = bytes_ahead / ahead / ceiling["bytes/s"], bytes_back / back / ceiling["bytes/s"]
            yield {
                "operator": name, "type": str(dtype).removeprefix("torch."), "forward ms": 1e3 * ahead,
                "forward share": shares[0], "backward ms": 1e3 * back, "backward share": shares[1],
                "goal met": shares[0] >= GOALS["forward"] and shares[1] >= GOALS["backward"],
            }  # fmt: skip


def size_of(tensors: Any) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)


# Training


def training(bench: Bench, ceiling: Row) -> Iterator[Row]:
    """Whole steps, bf16 over float32 weights: ours, its continuous twin, the event-driven one, compiled, plain loops."""
    plans = [
        ("46m", "after", bench.backend, False, 64), ("46m", "none", bench.backend, False, 64),
        ("216m", "after", bench.backend, False, 16), ("216m", "none", bench.backend, False, 16),
        ("46m", "before", bench.backend, False, 64), ("46m", "after", "reference", False, 16),
        ("46m", "after", bench.backend, True, 64), ("46m", "none", bench.backend, True, 64),
        ("216m", "after", bench.backend, True, 16), ("216m", "none", bench.backend, True, 16),
    ]  # fmt: skip
    for name, spikes, backend, compiled, batch in plans:
        need = 100 if compiled else 40
        row: Row = {"preset": name, "spikes": spikes, "operators": backend, "compiled": compiled, "batch": batch}
        if bench.toy and compiled:
            continue
        if bench.left() < need and not bench.toy:
            yield row | {"left out": "no time left"}
            continue
        bench.forget()
        try:
            yield row | train_rate(bench, ceiling, row)
        except torch.OutOfMemoryError:
            yield row | {"left out": "out of memory"}


def train_rate(bench: Bench, ceiling: Row, row: Row) -> Row:
    """Tokens/s of one plan's training step, and its share of the matrix rate."""
    toy: Row = {"n_layer": 1, "n_embd": 16, "vocab_size": 32, "context": 8} if bench.toy else {}
    config = preset(row["preset"], spikes=row["spikes"], **toy)
    with torch.device(bench.device):
        model = SpikeGPT(config, backend=row["operators"]).train()
    batch = 2 if bench.toy else row["batch"]
    ids = torch.randint(config.vocab_size, (batch, config.context + 1), device=bench.device)
    optimizer = make_optimizer(model, TrainConfig())
    reader: Any = torch.compile(model) if row["compiled"] else model

    def step() -> None:
        with bench.autocast():
            logits, _ = reader(ids[:, :-1])
        loss_fn(logits, ids[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()

    slow = row["operators"] == "reference"
    rate = batch * config.context / bench.seconds(step, repeats=1 if slow else 10, warm=1 if slow else 3)
    peak = torch.cuda.max_memory_allocated() / 1e9 if bench.on_gpu else 0.0
    share = 6 * model.matrix_parameters() * rate / ceiling["bf16 operations/s"]
    return {"tokens/s": rate, "share of matrix rate": share, "peak GB": peak}


# Decoding


def decoding(bench: Bench) -> Iterator[Row]:
    """Tokens/s of all sequences together, matrices in bf16, greedy: launched one by one, and as a CUDA graph."""
    toy: Row = {"n_layer": 1, "n_embd": 16} if bench.toy else {}
    config: ModelConfig = preset("46m", **toy)
    with torch.device(bench.device):
        model = SpikeGPT(config, backend=bench.backend).eval()
    for module in model.modules():
        if isinstance(module, Linear):
            module.weight.data = module.weight.data.bfloat16()
    for batch in (1, 2) if bench.toy else (1, 16, 256):
        if bench.left() < 20:
            return
        with torch.no_grad(), bench.autocast():
            yield {"batch": batch, **decode_rates(bench, model, batch)}


def decode_rates(bench: Bench, model: SpikeGPT, batch: int) -> Row:
    """Tokens/s, plainly and (on a GPU) as a graph, and whether both choose the same tokens."""
    count = 4 if bench.toy else 100

    def plainly() -> list[Tensor]:
        ids, state, said = torch.zeros(batch, dtype=torch.int64, device=bench.device), model.init_state(batch), []
        for _ in range(count):
            logits, state = model(ids.unsqueeze(1), state)
            ids = logits[:, -1].argmax(-1)
            said.append(ids)
        return said

    row: Row = {"tokens/s": batch * count / bench.seconds(plainly, repeats=3, warm=1)}
    if not bench.on_gpu:
        return row
    graph = DecodingGraph(model, batch)

    def replayed() -> list[Tensor]:
        graph.load(model.init_state(batch))
        ids, said = torch.zeros(batch, dtype=torch.int64, device=bench.device), []
        for _ in range(count):
            ids = graph(ids).argmax(-1)
            said.append(ids)
        return said

    same = all(torch.equal(a, b) for a, b in zip(plainly(), replayed(), strict=True))
    return row | {"as a graph": batch * count / bench.seconds(replayed, repeats=3, warm=1), "same tokens": same}


# The report


def table(title: str, rows: list[Row]) -> None:
    """Print rows in columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    texts = [[text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    print(f"\n{title}")
    for cells in (columns, ["-" * width for width in widths], *texts):
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)), flush=True)


def text(value: Any) -> str:
    """A figure as people read it."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def versus_twin(rows: list[Row]) -> list[Row]:
    """What spiking costs: tokens/s of `after` beside `none`, for each preset run both ways."""
    run = [row for row in rows if "tokens/s" in row and row["operators"] != "reference"]
    speed = {(row["preset"], row["compiled"], row["spikes"]): row["tokens/s"] for row in run}
    compared = []
    for (name, compiled, spikes), rate in speed.items():
        twin = speed.get((name, compiled, "none"))
        if spikes == "after" and twin:
            cost = 1 - rate / twin
            compared.append({
                "preset": name, "compiled": compiled, "cost of spiking": cost,
                "goal met": cost <= GOALS["cost of spiking"] and rate >= GOALS[name],
            })  # fmt: skip
    return compared


def main() -> int:
    """Run the sections; 0 if every operator is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ["correctness", "kernels", "training", "decoding"]
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=7.5, help="when to stop beginning anything new")
    parser.add_argument("--toy", action="store_true", help="sizes that say nothing about speed, to try the program")
    parser.add_argument("--sections", nargs="+", choices=sections, default=sections)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here; --device cpu --toy tries the program", file=sys.stderr)
        return 2
    bench = Bench(arguments.device, arguments.minutes, arguments.toy)
    facts: Row = {
        "device": torch.cuda.get_device_name() if bench.on_gpu else platform.processor() or platform.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "torch": torch.__version__,
        "operators": {name: str(there) for name, there in ops.available().items()}, "goals": GOALS,
        "shape": bench.shape, "ceilings": ceilings(bench),
    }  # fmt: skip
    table("Ceilings", [{"device": facts["device"], **facts["ceilings"]}])
    run: dict[str, Callable[[], Iterator[Row]]] = {
        "correctness": lambda: correctness(bench),
        "kernels": lambda: kernels(bench, facts["ceilings"]),
        "training": lambda: training(bench, facts["ceilings"]),
        "decoding": lambda: decoding(bench),
    }
    # Decoding is short: before training, which takes what time is left.
    for name in ("correctness", "kernels", "decoding", "training"):
        if name in arguments.sections:
            facts[name] = list(run[name]())
            table(name.capitalize(), facts[name] or [{"left out": "no time left"}])
    if facts.get("training"):
        facts["beside the twin"] = versus_twin(facts["training"])
        table("Beside the continuous twin", facts["beside the twin"] or [{"left out": "no pair was run"}])
    print(json.dumps(facts))
    return 0 if all(row["right"] for row in facts.get("correctness", [])) else 1


if __name__ == "__main__":
    raise SystemExit(main())

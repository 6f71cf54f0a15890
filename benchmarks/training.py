"""Training step against the machine's own matrix speed, and against other models of the same size.

python -m benchmarks.training [--json FILE] [--quick] [--models after ...] [--precisions no bf16]: 12 x 512, T = 1024,
batch 2; the canonical model, its continuous twin, the event-driven one, and transformers' Llama and RWKV where
transformers is installed. Every model in a process of its own, which also measures a 2048-cube product.
"""

from __future__ import annotations

import argparse
import contextlib
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.table import alone, make_parser, matrix_rate, median, peak_memory, report, seconds
from spikegpt.config import EventConfig, ModelConfig, TrainConfig
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.training.allocator import keep_freed_memory
from spikegpt.training.loss import loss_fn
from spikegpt.training.optim import make_optimizer

VOCABULARY = 256
NAMES = {
    "after": "SpikeGPT",
    "none": "continuous twin",
    "before": "event-driven",
    "shared": "event-driven, shared events",
    "llama": "Llama",
    "rwkv": "HF RWKV-4",
}
GOALS = "Goals: 80% of the matrix speed in float32, as many tokens/s as Llama, WKV below 12% of the step, 3 GB."


def make_model(name: str, layers: int, channels: int, length: int) -> tuple[nn.Module, int]:
    """A model, and how many parameters every token is multiplied with."""
    if name in ("after", "none", "before", "shared"):
        neurons: dict[str, Any] = {"spikes": name}
        if name == "shared":
            neurons = {"spikes": "before", "event": EventConfig(shared=True)}
        model = SpikeGPT(ModelConfig(vocab_size=VOCABULARY, n_layer=layers, n_embd=channels, context=length, **neurons))
        return model, model.matrix_parameters()
    from transformers import LlamaConfig, LlamaForCausalLM, RwkvConfig, RwkvForCausalLM

    if name == "llama":
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=channels, intermediate_size=3 * channels, num_hidden_layers=layers,
            num_attention_heads=channels // 64, max_position_embeddings=length, tie_word_embeddings=False,
        ))  # fmt: skip
    else:
        model = RwkvForCausalLM(RwkvConfig(
            vocab_size=VOCABULARY, context_length=length, hidden_size=channels, num_hidden_layers=layers, use_cache=False,
        ))  # fmt: skip
    return model, sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)


def make_step(model: nn.Module, batch: int, length: int, precision: str) -> Callable[[], None]:
    """One whole training step: forward, loss, backward, clipping, AdamW."""
    train = TrainConfig(precision=precision)
    ours = isinstance(model, SpikeGPT)
    optimizer = make_optimizer(model, train)
    ids = torch.randint(VOCABULARY, (batch, length + 1))
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

    def logits() -> Tensor:
        return model(ids[:, :-1])[0] if ours else model(input_ids=ids[:, :-1]).logits

    def step() -> None:
        with autocast:
            predicted = logits()
        loss_fn(predicted, ids[:, 1:], train.logit_penalty).backward()
        nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        optimizer.step()
        optimizer.zero_grad()
        if ours:
            model.after_step()

    return step


def wkv_share(step: Callable[[], None]) -> float:
    """Share of a step that the WKV operator takes, forward and backward."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    events = profiler.key_averages()
    kernels = [event for event in events if event.key.startswith("spikegpt::") and "wkv" in event.key]
    return sum(e.cpu_time_total for e in kernels) / sum(e.self_cpu_time_total for e in events)


def measure(name: str, precision: str, given: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    keep_freed_memory()  # as `spikegpt train` does, here for every model
    warnings.simplefilter("ignore")  # transformers says at length that its RWKV has no kernel for a CPU
    model, parameters = make_model(name, given.layers, given.channels, given.length)
    step = make_step(model.train(), given.batch, given.length, precision)
    cube = 256 if given.quick else 2048
    for _ in range(given.warm):
        step()
    before, times, after = matrix_rate(cube, precision), seconds(step, given.repeats), matrix_rate(cube, precision)
    rate, ceiling = given.batch * given.length / median(times), max(before, after)
    row = {
        "model": NAMES[name],
        "precision": "float32" if precision == "no" else precision,
        "matrix parameters, M": parameters / 1e6,
        "tokens/s": rate,
        "GFLOP/s": 6 * parameters * rate / 1e9,
        f"{cube}-cube, GFLOP/s": ceiling / 1e9,
        "share of matrix speed": 6 * parameters * rate / ceiling,
        "peak memory, GB": peak_memory() / 1e9,
    }
    return row | ({"WKV's share": wkv_share(step)} if isinstance(model, SpikeGPT) else {})


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--precisions", nargs="+", choices=("no", "bf16"), default=["no", "bf16"])
    for name, default in (
        ("layers", 12),
        ("channels", 512),
        ("length", 1024),
        ("batch", 2),
        ("repeats", 5),
        ("warm", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    if given.quick:
        given.layers, given.channels, given.length, given.repeats, given.warm = 2, 64, 32, 1, 0
    models = given.models
    if find_spec("transformers") is None:
        models = [name for name in models if name not in ("llama", "rwkv")]
    rows = [alone(measure, name, precision, given) for precision in given.precisions for name in models]
    shape = f"{given.layers} x {given.channels}, V = {VOCABULARY}, T = {given.length}, batch {given.batch}"
    report(f"Training step, {shape}", rows, given.json, note=GOALS)


if __name__ == "__main__":
    main()

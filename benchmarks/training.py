"""Training step against the machine's own matrix speed, and against a Transformer of the same size.

python -m benchmarks.training [--json FILE] [--precision bf16]: the canonical model, its continuous twin and the
event-driven one at 12 x 512, T = 1024, batch 2, float32; every figure a ratio within the run.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import time
from collections.abc import Callable

import torch

from benchmarks.table import matrix_rate, report
from spikegpt.config import ModelConfig, TrainConfig
from spikegpt.model import SpikeGPT
from spikegpt.optim import make_optimizer
from spikegpt.train import loss_fn

LAYERS, CHANNELS, VOCABULARY = 12, 512, 256


def steps_per_second(step: Callable[[], None], repeats: int) -> float:
    """Median over `repeats` single steps, after one to warm up."""
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1 / sorted(times)[len(times) // 2]


def spikegpt_step(spikes: str, batch: int, length: int, precision: str) -> tuple[Callable[[], None], int]:
    """One whole training step of ours, and the number of parameters it multiplies with."""
    config = ModelConfig(vocab_size=VOCABULARY, n_layer=LAYERS, n_embd=CHANNELS, context=length, spikes=spikes)
    model = SpikeGPT(config)
    train = TrainConfig(precision=precision)
    optimizer = make_optimizer(model, train)
    ids = torch.randint(VOCABULARY, (batch, length + 1))
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

    def step() -> None:
        with autocast:
            logits, _ = model(ids[:, :-1])
        loss_fn(logits, ids[:, 1:], train.logit_penalty).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()

    return step, model.matrix_parameters()


def llama_step(batch: int, length: int, precision: str) -> tuple[Callable[[], None], int]:
    """The same of transformers' Llama with as many weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=CHANNELS, intermediate_size=1536, num_hidden_layers=LAYERS,
        num_attention_heads=8, max_position_embeddings=length, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(VOCABULARY, (batch, length))
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

    def step() -> None:
        with autocast:
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    parameters = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    return step, parameters


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["after", "none", "before", "llama"])
    arguments = parser.parse_args()
    tokens = arguments.batch * arguments.length
    rows = []
    for name in arguments.models:
        ceiling = matrix_rate(2048, arguments.precision)
        try:
            if name == "llama":
                step, parameters = llama_step(arguments.batch, arguments.length, arguments.precision)
            else:
                step, parameters = spikegpt_step(name, arguments.batch, arguments.length, arguments.precision)
        except ImportError as error:
            print(f"{name}: left out ({error})")
            continue
        rate = steps_per_second(step, arguments.repeats) * tokens
        rows.append(
            {
                "model": name,
                "matrix parameters (M)": parameters / 1e6,
                "tokens/s": rate,
                "GFLOP/s": 6 * parameters * rate / 1e9,
                "2048-cube GFLOP/s": ceiling / 1e9,
                "share of matrix speed": 6 * parameters * rate / ceiling,
                "peak memory so far (GB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
            }
        )
    report(
        f"Training step, {LAYERS} x {CHANNELS}, T = {arguments.length}, batch {arguments.batch}", rows, arguments.json
    )


if __name__ == "__main__":
    main()

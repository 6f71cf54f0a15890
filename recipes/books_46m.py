"""Train the 46M model, its continuous twin and the event-driven one on books, on one GPU, in pieces of a few minutes.

python recipes/books_46m.py [--data ../shared/data/books] [--runs runs/books-46m] [--minutes 9] [--only canonical ...]

Run it again until it says that all is done: each call goes on where the last one stopped, to the very same weights. All
three read the same tokens: bytes, 64 x 1024 a step, 500 million in all by default. Each model begins cold, and the
event-driven one learns from the twin's predictions too; the test text is read once, at its end. Figures go to
RUNS/results.json, weights in 8 bits (in shards that fit anywhere) to RUNS/NAME-8bit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from eight_bits import restore, write_shards

from spikegpt import evaluate, load
from spikegpt.checkpoint import WEIGHTS, latest_checkpoint
from spikegpt.config import TrainConfig
from spikegpt.training.machine import GPU_STEP
from spikegpt.training.recipe import train_on

MODELS = {"canonical": "after", "twin": "none", "event-driven": "before"}
"""In the order in which they are trained."""
TEACHERS = {"event-driven": "twin"}
"""Whose predictions are nine tenths of the loss; see docs/experiments.md."""


def main() -> int:
    """Train until all is done or the time is up; 0, or 75 (try again) where there is more to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data/books"), help="train.txt.xz, valid.txt, test.txt"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/books-46m"))
    parser.add_argument("--minutes", type=float, default=9.0, help="until the last checkpoint is begun")
    parser.add_argument("--megabytes", type=float, default=500.0, help="of text each model reads")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--preset", default="46m")
    parser.add_argument("--set", dest="overrides", type=json.loads, default={}, help="fields of the model, in JSON")
    parser.add_argument("--accumulate", type=int, default=1, help="parts a step is computed in, where memory is short")
    parser.add_argument("--step-tokens", type=int, default=GPU_STEP, help="tokens in a step")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    for name in arguments.only:
        out = arguments.runs / name
        if not (out / WEIGHTS).exists() and not train(arguments, name, out, end):
            print(f"time is up while training {name}; run the same command again")
            return 75
        if name not in read_results(arguments.runs):
            measure(arguments, name, out)
    print(f"all done: {arguments.runs / 'results.json'}")
    return 0


def train(arguments: argparse.Namespace, name: str, out: Path, end: float) -> bool:
    """Begin or go on with a model, and stop in time; whether it is finished."""
    context = arguments.overrides.get("context", 1024)
    teacher = arguments.runs / TEACHERS[name] if name in TEACHERS else None
    if teacher is not None and not (teacher / WEIGHTS).exists():
        raise SystemExit(f"the {name} model learns from the {TEACHERS[name]}: train that first")
    config = TrainConfig(
        steps=max(1, round(arguments.megabytes * 1e6 / arguments.step_tokens)),
        batch_size=max(1, arguments.step_tokens // context // arguments.accumulate), accumulate=arguments.accumulate,
        lr=2e-3, warmup=min(500, 1 + round(arguments.megabytes)), schedule="wsd", decay=0.2, precision="bf16",
        log_every=50, eval_every=500, eval_tokens=2**20, save_every=0,
        distill=0.9 if teacher else 0.0,
    )  # fmt: skip
    # Ctrl-C ends the step and saves: the run is resumed from there. A shell's background jobs begin with it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    alarm = threading.Timer(max(0.1, end - time.monotonic()), os.kill, (os.getpid(), signal.SIGINT))
    alarm.daemon = True
    alarm.start()
    files = arguments.data
    try:
        result = train_on(
            [next(files.glob("train.txt*"))], out, valid=[files / "valid.txt"], shape=arguments.preset, tokenizer="bytes",
            overrides={**arguments.overrides, "spikes": MODELS[name]}, config=config,
            resume=latest_checkpoint(out) is not None, cache=arguments.runs / "tokens", teacher=teacher,
        )  # fmt: skip
    except KeyboardInterrupt:  # the time was up before the first step
        return False
    finally:
        alarm.cancel()
    return not result["interrupted"]


def measure(arguments: argparse.Namespace, name: str, out: Path) -> None:
    """Bits per byte of both held-out texts, the curve's end and the 8-bit weights, into the results."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, (valid, test) = load(out, device=device), (arguments.data / f"{name}.txt" for name in ("valid", "test"))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    speeds = sorted(line["tokens_per_second"] for line in lines if "tokens_per_second" in line)
    small = restore(write_shards(out, arguments.runs / f"{name}-8bit"), arguments.runs / f"{name}-rounded")
    results = read_results(arguments.runs)
    results[name] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(sys.argv),
        "tokens per second": speeds[len(speeds) // 2] if speeds else None,
        "valid bits per byte": evaluate(model, valid).bits_per_byte,
        "test bits per byte": evaluate(model, test).bits_per_byte,
        "8-bit valid bits per byte": evaluate(load(small, device=device), valid).bits_per_byte,
        "curve": [[line["tokens"], line["valid_bits_per_byte"]] for line in lines if "valid_bits_per_byte" in line],
    }  # fmt: skip
    staged = arguments.runs / "results.json.tmp"
    staged.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(staged, arguments.runs / "results.json")


def read_results(runs: Path) -> dict[str, Any]:
    """What has been measured so far."""
    path = runs / "results.json"
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    raise SystemExit(main())

"""The search for the event-driven recipe: every run by name, on the very same tokens, into one table.

python experiments/search.py RUN [RUN ...] --books FOLDER [--seed 0] [--steps 500]   train (or resume), measure, log
python experiments/search.py --table                                                 the log as Markdown
python experiments/search.py --plot docs/images/curve.png                            bits per byte over activity

FOLDER holds train.txt.xz and valid.txt. Each line of experiments/results.jsonl is one finished run. Fewer --steps try an
idea out; runs are compared with the twin of as many.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.jsonl")
# 6 x 256 has 5.1M matrix parameters and 1.05M in the head; 2,800 x 2,048 tokens are 20.3 MB of the books.
SHAPE: dict[str, Any] = {"n_layer": 6, "n_embd": 256, "context": 256, "dropout": 0.0}
TRAIN: dict[str, Any] = {
    "steps": 2800, "batch_size": 8, "lr": 2e-3, "warmup": 100, "schedule": "wsd", "decay": 0.3, "precision": "bf16",
    "eval_every": 0, "save_every": 200, "log_every": 20,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One idea: what is hoped for, and what differs from the base."""

    hypothesis: str
    spikes: str = "before"
    event: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    teacher: str | None = None
    """Name of the run whose model teaches this one."""
    begins_as: str | None = None
    """Name of the run whose weights and thresholds, made event-driven, are the start; it is the teacher too."""


TAUGHT: dict[str, Any] = {"train": {"distill": 0.9}, "teacher": "twin"}
"""Nine tenths of the loss are the distance from the predictions of the twin, which saw the same tokens."""
COARSE: dict[str, Any] = {"levels": 1, "resolution": 1.0, "window": 0.5}

RUNS: dict[str, Run] = {
    "twin": Run("the continuous model is what all others are measured against", "none"),
    "canonical": Run("SpikeGPT as published: neurons after each mix", "after"),
    "taught-twin": Run("what a teacher is worth to the continuous model itself", "none", **TAUGHT),
    "taught-canonical": Run("and to SpikeGPT as published", "after", **TAUGHT),
    "uniform-15": Run(
        "soft threshold, 15 levels, the same activity everywhere", event={"activity": 0.15, "emphasis": {}}
    ),
    **{f"graded-{p}": Run("activity where it helps most", event={"activity": p / 100}) for p in (6, 10, 15, 30)},
    **{
        f"distilled-{p}": Run("the twin's predictions say more than the text", event={"activity": p / 100}, **TAUGHT)
        for p in (6, 10, 15, 20, 30, 50)
    },
    **{
        f"spikified-{p}": Run(
            "the twin's weights are a better start than none",
            event={"activity": p / 100, "start_activity": 0.5},
            train={"distill": 0.9, "lr": 1e-3},
            begins_as="twin",
        )
        for p in (6, 10, 15, 20, 30, 50)
    },
    "ramp-15": Run(
        "dense at first, thresholds rise over half the run", event={"activity": 0.15, "start_activity": 0.6}
    ),
    "leak-15": Run("a leak of 0.5 lets a membrane gather evidence", event={"activity": 0.15, "leak": 0.5}),
    "learned-leak-15": Run(
        "each channel finds its own leak", event={"activity": 0.15, "leak": 0.2, "learn_leak": True}
    ),
    "soft-reset-15": Run(
        "what was not said is kept", event={"activity": 0.15, "leak": 0.3, "learn_leak": True, "reset": "soft"}
    ),
    "window-15": Run("gradients for the almost firing", event={"activity": 0.15, "window": 0.25}),
    "fine-15": Run("sixteen steps to a threshold instead of four", event={"activity": 0.15, "resolution": 16.0}),
    "ternary-30": Run("-1, 0, 1 only", event={"activity": 0.30, **COARSE}, **TAUGHT),
    "binary-30": Run("0, 1 only", event={"activity": 0.30, "signed": False, **COARSE}, **TAUGHT),
}


def train_and_measure(name: str, seed: int, steps: int, books: Path, runs: Path) -> dict[str, Any]:
    """Train run `name` (or go on with it), measure it on the whole of valid.txt."""
    from spikegpt.checkpoint import latest_checkpoint, load
    from spikegpt.config import EventConfig, TrainConfig
    from spikegpt.corpus import documents
    from spikegpt.evaluation import evaluate_files
    from spikegpt.meter import SpikeMeter
    from spikegpt.recipe import train_on
    from spikegpt.spikify import spikify
    from spikegpt.tokenizer import train_bpe

    run, out = RUNS[name], folder(runs, name, seed, steps)
    tokenizer = runs / "tokenizer.json"
    if not tokenizer.exists():
        runs.mkdir(parents=True, exist_ok=True)
        train_bpe(_first(documents([books / "train.txt.xz"]), 40_000_000), 4096).save(runs)
    started = time.time()
    if not (out / "model.safetensors").exists():
        config = TrainConfig(**{**TRAIN, **run.train, "seed": seed, "steps": steps})
        common = {
            "valid": [books / "valid.txt"], "config": config, "cache": runs, "resume": latest_checkpoint(out) is not None,
        }  # fmt: skip
        if run.begins_as:
            source = folder(runs, run.begins_as, seed, steps)
            event = EventConfig(**run.event)
            spikify(source, out, data=[books / "train.txt.xz"], activity=event.activity, event=event, **common)
        else:
            shape = {**SHAPE, "spikes": run.spikes, **({"event": run.event} if run.event else {})}
            train_on(
                [books / "train.txt.xz"], out, shape="small", tokenizer=str(tokenizer), overrides=shape, **common,
                teacher=folder(runs, run.teacher, seed, steps) if run.teacher else None,
            )  # fmt: skip
    model = load(str(out)).eval()
    with SpikeMeter(model) as meter:
        measured = evaluate_files(model, [books / "valid.txt"], streams=32)
    tokens = steps * TRAIN["batch_size"] * SHAPE["context"]
    return {
        "run": name, "seed": seed, "hypothesis": run.hypothesis, "tokens": tokens,
        "bits_per_byte": measured.bits_per_byte, "activity": meter.activity, "spike_rate": meter.rate,
        "seconds": round(time.time() - started), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def folder(runs: Path, name: str, seed: int, steps: int) -> Path:
    """Where a run keeps its model."""
    return runs / (f"{name}-{seed}" if steps == TRAIN["steps"] else f"{name}-{seed}-{steps}")


def _first(texts: Any, size: int) -> Any:
    for text in texts:
        yield text
        size -= len(text)
        if size <= 0:
            return


def results() -> list[dict[str, Any]]:
    """Every finished run, in the order of the log."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def averages() -> dict[tuple[str, int], dict[str, float]]:
    """By run and tokens seen: bits per byte and activity averaged over the seeds, with the ratio to the twin's."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in results():
        rows.setdefault((row["run"], row["tokens"]), []).append(row)
    means = {
        which: {"seeds": len(group)}
        | {key: sum(row[key] for row in group) / len(group) for key in ("activity", "bits_per_byte")}
        for which, group in rows.items()
    }
    for (_, tokens), row in means.items():
        twin = means.get(("twin", tokens))
        row["of twin"] = row["bits_per_byte"] / twin["bits_per_byte"] if twin else float("nan")
    return means


def table() -> str:
    """The log as a Markdown table, one row a run, the longest first."""
    lines = [
        "| run | hypothesis | tokens | seeds | activity | bits per byte | of the twin |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (name, tokens), row in sorted(averages().items(), key=lambda item: -item[0][1]):
        lines.append(
            f"| `{name}` | {RUNS[name].hypothesis} | {tokens / 1e6:.1f}M | {row['seeds']} | {row['activity']:.1%} "
            f"| {row['bits_per_byte']:.4f} | {row['of twin']:.1%} |"
        )
    return "\n".join(lines)


def plot(path: Path) -> None:
    """Bits per byte over activity, the twin and the canonical model as lines."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(7, 4.5), layout="constrained")).subplots()
    means = averages()
    longest = max(tokens for _, tokens in means)
    curves: dict[str, list[tuple[float, float]]] = {}
    for (name, tokens), row in means.items():
        if tokens != longest:
            continue
        if RUNS[name].spikes != "before":
            colour = "black" if RUNS[name].spikes == "none" else "tab:red"
            axes.axhline(
                row["bits_per_byte"],
                color=colour,
                linestyle=":" if RUNS[name].teacher else "--",
                label=f"{name} (reads every weight)",
            )
        else:
            curves.setdefault(name.rpartition("-")[0], []).append((100 * row["activity"], row["bits_per_byte"]))
    for name, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axes.set_xlabel("activity: weights read per token, %")
    axes.set_ylabel("bits per byte on held-out books")
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--books", type=Path, help="folder of train.txt.xz and valid.txt")
    parser.add_argument("--runs", type=Path, default=Path("runs/search"), help="where checkpoints go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=TRAIN["steps"])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in RUNS]
    if unknown:
        parser.error(f"no run {unknown[0]!r}; there are {', '.join(RUNS)}")
    if arguments.names and arguments.books is None:
        parser.error("--books FOLDER is needed to train")
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
    for name in arguments.names:
        row = train_and_measure(name, arguments.seed, arguments.steps, arguments.books, arguments.runs)
        with RESULTS.open("a") as log:
            log.write(json.dumps(row) + "\n")
        print(json.dumps(row))
    if arguments.table:
        print(table())
    if arguments.plot:
        plot(arguments.plot)


if __name__ == "__main__":
    main()

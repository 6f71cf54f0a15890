"""The search for the event-driven recipe: every run by name, on the very same tokens, into one table.

python experiments/search.py RUN [RUN ...] --books FOLDER [--seed 0] [--steps 504]   train (or resume), measure, log
python experiments/search.py --table                                                 the log as Markdown
python experiments/search.py --plot docs/images/curve.png                            bits per byte over activity

FOLDER holds train.txt.xz and valid.txt. Each line of experiments/results.jsonl is one finished run. Fewer --steps try an
idea out; runs are compared with the twin of as many.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

RESULTS = Path(__file__).with_name("results.jsonl")
# 6 x 256 has 5.1M matrix parameters and 1.05M in the head; 2,800 x 2,048 tokens are 20.3 MB of the books.
SHAPE: dict[str, Any] = {"n_layer": 6, "n_embd": 256, "context": 256, "dropout": 0.0}
TRAIN: dict[str, Any] = {
    "steps": 2800, "batch_size": 8, "lr": 2e-3, "warmup": 100, "schedule": "wsd", "decay": 0.3, "precision": "bf16",
    "eval_every": 0, "log_every": 20,
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
    """Name of the run whose model, made event-driven or brought to another activity, is the start."""
    part: tuple[int, int] = (0, 14)
    """The steps of this run, in fourteenths of a whole run's; the tokens are those that all runs read at these steps."""
    early: bool = False
    """Whether the start is what `begins_as` was at the first of these steps, and not its finished model."""


TAUGHT: dict[str, Any] = {"train": {"distill": 0.9}, "teacher": "twin"}
"""Nine tenths of the loss are the distance from the predictions of the twin, which saw the same tokens."""
BRANCHED: dict[str, Any] = {
    "train": {"distill": 0.9, "warmup": 20, "decay": 0.7}, "teacher": "twin",
    "begins_as": "twin", "part": (8, 14), "early": True,
}  # fmt: skip
"""The first steps are the twin's own, so that one trunk serves every activity; the learning rate falls when the twin's does."""
DRAWN: dict[str, Any] = {
    "train": {"distill": 0.9, "match": 2.0, "lr": 4e-3, "warmup": 40, "decay": 0.7}, "teacher": "twin",
}  # fmt: skip
"""Learns from the twin's residuals as well, at twice the twin's own learning rate."""
SHARES: dict[str, Any] = {"emphasis": None}
"""As all of these runs were made: the shares that were measured first."""
FALLING: dict[str, Any] = {"start_activity": 0.5, "ramp": 0.25}
"""Half of the weights are read at first; a quarter of the steps later, no more than wanted."""
CHAIN = {15: (None, 0, 7), 10: (15, 7, 10), 6: (10, 10, 14), 20: (15, 7, 8), 30: (20, 8, 9), 50: (30, 9, 10)}
"""Activity of a chained run, in percent: that of the run it begins as (None: the twin), and its part of the steps."""
COARSE: dict[str, Any] = {"levels": 1, "resolution": 1.0, "window": 0.5}

RUNS: dict[str, Run] = {
    "twin": Run("the continuous model is what all others are measured against", "none", train={"keep": 20}),
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
            teacher="twin",
            begins_as="twin",
        )
        for p in (6, 10, 15, 20, 30, 50)
    },
    **{
        f"branched-{p}": Run(
            "dense at first: the twin until its learning rate is about to fall, then events",
            event={"activity": p / 100, **FALLING},
            **BRANCHED,
        )
        for p in (6, 10, 15, 20, 30, 50)
    },
    **{
        f"chained-{p}": Run(
            "the finished twin, then one activity after the other; the twin's residuals say more than its predictions",
            event={"activity": p / 100, **FALLING, **({"start_activity": start / 100} if start else {})},
            begins_as=f"chained-{start}" if start else "twin",
            part=(first, last),
            **DRAWN,
        )
        for p, (start, first, last) in CHAIN.items()
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
    **{
        f"{name}-{p}": Run(
            f"{what} only",
            event={"activity": p / 100, "signed": name == "ternary", **FALLING, **COARSE},
            begins_as="twin",
            part=(0, 3),
            **DRAWN,
        )
        for name, what in (("ternary", "-1, 0, 1"), ("binary", "0, 1"))
        for p in (15, 30)
    },
}


VERDICTS = {
    "twin": "the yardstick",
    "canonical": "much nearer to the twin than in a smaller prototype",
    "distilled": "kept: the best that reads the text once",
    "spikified": "kept: the best at 15%, for a second reading",
    "branched": "cheap, but too few steps with events",
    "chained": "kept for the curve: six activities in 1.2 runs",
    "ternary": "failed: without sizes 6% more than `chained`, in 600 steps instead of 1,400",
    "binary": "failed: without signs another 3%",
}
"""What came of the runs, by name without activity."""


def train(name: str, seed: int, steps: int, books: Path, runs: Path) -> Path:
    """Train run `name`, or go on with it; the folder of its model."""
    from spikegpt.checkpoint import checkpoint_path, latest_checkpoint
    from spikegpt.config import EventConfig, TrainConfig
    from spikegpt.training.recipe import train_on
    from spikegpt.training.spikify import spikify

    run, out = RUNS[name], folder(runs, name, seed, steps)
    if (out / "model.safetensors").exists():
        return out
    first, last = (part * steps // 14 for part in run.part)
    own = {"seed": seed, "skip": first, "steps": last - first, "save_every": steps // 14}
    data, common = [books / "train.txt.xz"], {
        "valid": [books / "valid.txt"], "config": TrainConfig(**{**TRAIN, **own, **run.train}), "cache": runs,
        "teacher": folder(runs, run.teacher, seed, steps) if run.teacher else None,
        "resume": latest_checkpoint(out) is not None,
    }  # fmt: skip
    if run.begins_as:
        start, event = folder(runs, run.begins_as, seed, steps), EventConfig(**SHARES | run.event)
        source = checkpoint_path(start, first) if run.early else start
        spikify(source, out, data=data, activity=event.activity, event=event, **common)
    else:
        shape = {**SHAPE, "spikes": run.spikes, **({"event": SHARES | run.event} if run.event else {})}
        train_on(data, out, shape="small", tokenizer=str(make_tokenizer(books, runs)), overrides=shape, **common)
    return out


def make_tokenizer(books: Path, runs: Path) -> Path:
    """The tokenizer that all runs share, learnt by the first of them."""
    from spikegpt.data.corpus import documents
    from spikegpt.tokenizer import train_bpe

    path = runs / "tokenizer.json"
    if not path.exists():
        runs.mkdir(parents=True, exist_ok=True)
        train_bpe(_first(documents([books / "train.txt.xz"]), 40_000_000), 4096).save(runs)
    return path


def measure(directory: Path, books: Path) -> dict[str, float]:
    """A model's bits per byte, activity and spike rate on the whole of valid.txt."""
    from spikegpt.evaluation import evaluate_files
    from spikegpt.loading import load
    from spikegpt.model.meter import SpikeMeter

    model = load(str(directory)).eval()
    with SpikeMeter(model) as meter:
        measured = evaluate_files(model, [books / "valid.txt"], streams=32)
    return {"bits_per_byte": measured.bits_per_byte, "activity": meter.activity, "spike_rate": meter.rate}


def train_and_measure(name: str, seed: int, steps: int, books: Path, runs: Path) -> dict[str, Any]:
    """The line of the log that run `name` is worth."""
    started = time.time()
    measured = measure(train(name, seed, steps, books, runs), books)
    tokens = steps * TRAIN["batch_size"] * SHAPE["context"]
    return {
        "run": name, "seed": seed, "hypothesis": RUNS[name].hypothesis, "tokens": tokens, **measured,
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
    """By run and tokens seen, averaged over seeds: activity, bits per byte, and their ratio to the twin's of the same seed."""
    repeats: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in results():
        repeats.setdefault((row["run"], row["tokens"], row["seed"]), []).append(row)
    once = {
        which: {key: mean(row[key] for row in rows) for key in ("activity", "bits_per_byte")}
        for which, rows in repeats.items()
    }
    seeds: dict[tuple[str, int], list[dict[str, float]]] = {}
    for (name, tokens, seed), row in once.items():
        twin = once.get(("twin", tokens, seed), {"bits_per_byte": math.nan})
        seeds.setdefault((name, tokens), []).append(row | {"of twin": row["bits_per_byte"] / twin["bits_per_byte"]})
    return {
        which: {"seeds": len(rows), **{key: mean(row[key] for row in rows) for key in rows[0]}}
        for which, rows in seeds.items()
    }


def read(name: str) -> float:
    """How often the weights of a run, and of what it began as, have read the text that all runs share; its teacher aside."""
    run = RUNS[name]
    own = (run.part[1] - run.part[0]) / 14
    if run.begins_as is None:
        return own
    return own + (run.part[0] / 14 if run.early else read(run.begins_as))


def table() -> str:
    """The log as a Markdown table, one row a run, the longest first."""
    lines = [
        "| run | hypothesis | tokens | read | seeds | activity | bits per byte | of the twin | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (name, tokens), row in sorted(averages().items(), key=lambda item: -item[0][1]):
        cells = [
            f"`{name}`", RUNS[name].hypothesis, f"{tokens / 1e6:.1f}M", f"{read(name):.2f}x", str(row["seeds"]),
            f"{row['activity']:.1%}", f"{row['bits_per_byte']:.4f}", f"{row['of twin']:.1%}",
            VERDICTS.get(name.partition("-")[0], ""),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
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
            colour = "black" if RUNS[name].spikes == "none" else "tab:gray"
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
    if arguments.steps % 14:
        parser.error(f"--steps {arguments.steps} is no multiple of 14: runs begin and end at fourteenths")
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

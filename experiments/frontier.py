"""The frontier: continuous and event-driven models of several sizes on the same text, by what they read for a token.

python experiments/frontier.py RUN [RUN ...] --text FOLDER [--seed 0]    train (or resume), measure, log
python experiments/frontier.py --speed --text FOLDER                     time the engines, in turns
python experiments/frontier.py --table                                   the log as Markdown
python experiments/frontier.py --plot docs/images/frontier.png           bits per byte over bytes read

RUN is KIND-WIDTH[-PERCENT]-BUDGET[-by-BUDGET][-first|-shared]: `dense` (continuous) and `alone` (event-driven) learn
from the text, `taught` and `event` from the same teacher beside it, the widest continuous model of their own budget or of
the one named: dense-128-small, alone-128-10-small, taught-64-large, taught-64-large-by-small. `first` spends the activity
as was measured first (config.FIRST_EMPHASIS); in `shared` key, value and receptance read the same events. FOLDER holds
train.txt.xz and valid.txt. All runs of a budget read the very same batches; a run on other tokens than the log's is
refused. Each line of experiments/frontier.jsonl is one finished run.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontier_report import conclusions, plot, table

RESULTS = Path(__file__).with_name("frontier.jsonl")
SPEEDS = Path(__file__).with_name("frontier_speed.json")
BUDGETS = {"small": 2310, "large": 9240, "long": 18480}
"""Optimiser steps; `long` reads every text twice."""
TRUNKS = {"large": ("small", 1617), "long": ("large", 6468)}
"""The shorter budget that a run goes on from, and the steps before that one's learning rate falls."""
WIDTHS = (32, 48, 64, 96, 128, 192, 256)
"""Of the continuous models whose engine is timed."""
TURN = 100
"""Tokens that an engine reads at a time while engines are timed in turns."""
TEACHER = 256
"""Width of the continuous model that teaches all others of a budget."""
DEPTH, VOCABULARY, CONTEXT = 6, 4096, 256
TRAIN: dict[str, Any] = {
    "batch_size": 8, "lr": 2e-3, "warmup": 100, "schedule": "wsd", "decay": 0.3, "precision": "bf16",
    "eval_every": 0, "log_every": 21, "save_every": 231, "keep": 40,
}  # fmt: skip
EVENT: dict[str, Any] = {"start_activity": 0.5, "ramp": 0.25, "smallest": 2, "jump_from": 0.3}
VARIANTS: dict[str | None, dict[str, Any]] = {"first": {"emphasis": None}, "shared": {"shared": True}}
_NAME = re.compile(r"(dense|taught|alone|event)-(\d+)(?:-(\d+))?-([a-z]+)(?:-by-([a-z]+?))?(?:-(first|shared))?")


@dataclass(frozen=True)
class Run:
    """One model of the frontier."""

    name: str
    kind: str
    width: int
    activity: float | None
    """Share of the weights to be read per token; None: a continuous model."""
    budget: str
    teacher: str | None
    """The run that it learns from beside the text."""
    variant: str | None = None
    """`first`: its shares of the activity are `config.FIRST_EMPHASIS`; `shared`: `event.shared` is true."""

    @staticmethod
    def named(name: str) -> Run:
        """The run of that name; a UsageError says how names are made."""
        from spikegpt.errors import UsageError

        match = _NAME.fullmatch(name)
        if match is not None:
            kind, width, percent, budget, by, variant = match.groups()
            taught = kind in ("taught", "event")
            teacher = f"dense-{TEACHER}-{by or budget}" if taught else None
            event = kind in ("alone", "event")
            fits = (
                (percent is not None) == event and (by is None or (taught and by in BUDGETS)) and (event or not variant)
            )
            if fits and budget in BUDGETS:
                share = None if percent is None else int(percent) / 100
                return Run(name, kind, int(width), share, budget, teacher, variant)
        raise UsageError(
            f"no run {name!r}: a run is KIND-WIDTH[-PERCENT]-BUDGET[-by-BUDGET][-first|-shared], as dense-128-small, "
            f"event-256-10-large or taught-64-large-by-small; budgets: {', '.join(BUDGETS)}"
        )

    @property
    def trunk(self) -> tuple[Run, int] | None:
        """The shorter run, of the same teacher, that this one goes on from, and after how many steps; None: it has none.

        An event-driven model goes on where its events are by then what they are in the end, in the shorter run and in this.
        """
        if self.budget not in TRUNKS:
            return None
        budget, steps = TRUNKS[self.budget]
        name = self.name.replace(f"-{self.budget}", f"-{budget}", 1).replace(f"-{budget}-by-{budget}", f"-{budget}")
        shorter = Run.named(name)
        settled = self.activity is None or steps >= BUDGETS[self.budget] * max(EVENT["ramp"], EVENT["jump_from"])
        return (shorter, steps) if shorter.teacher == self.teacher and settled else None

    @property
    def tokens(self) -> int:
        """What it reads in training."""
        return BUDGETS[self.budget] * TRAIN["batch_size"] * CONTEXT

    def folder(self, runs: Path, seed: int) -> Path:
        """Where it keeps its checkpoints and its model."""
        return runs / f"{self.name}-{seed}"


def train(run: Run, seed: int, text: Path, runs: Path) -> Path:
    """Train a run, or resume it; the folder of its model."""
    from spikegpt.checkpoint import checkpoint_path, latest_checkpoint
    from spikegpt.config import TrainConfig
    from spikegpt.training.recipe import train_on

    out = run.folder(runs, seed)
    if (out / "model.safetensors").exists():
        return out
    if run.trunk and latest_checkpoint(out) is None:
        shorter, steps = run.trunk
        shutil.copytree(checkpoint_path(train(shorter, seed, text, runs), steps), checkpoint_path(out, steps))
    teacher = train(Run.named(run.teacher), 0, text, runs) if run.teacher else None
    shape: dict[str, Any] = {
        "n_layer": DEPTH,
        "n_embd": run.width,
        "context": CONTEXT,
        "dropout": 0.0,
        "spikes": "none",
    }
    if run.activity is not None:
        shape |= {"spikes": "before", "event": {"activity": run.activity, **EVENT, **VARIANTS.get(run.variant, {})}}
    own = {"steps": BUDGETS[run.budget], "seed": seed, "distill": 0.9 if teacher else 0.0}
    train_on(
        [text / "train.txt.xz"], out, valid=[text / "valid.txt"], cache=runs, shape="small", overrides=shape,
        tokenizer=str(_tokenizer(text, runs)), config=TrainConfig(**{**TRAIN, **own}), teacher=teacher,
        resume=latest_checkpoint(out) is not None,
    )  # fmt: skip
    return out


def _tokenizer(text: Path, runs: Path) -> Path:
    """The tokenizer that all runs share, learnt by the first of them."""
    from spikegpt.training.recipe import make_tokenizer

    path = runs / "tokenizer.json"
    if not path.exists():
        runs.mkdir(parents=True, exist_ok=True)
        make_tokenizer(f"bpe:{VOCABULARY}", [text / "train.txt.xz"]).save(runs)
    return path


def measure(out: Path, text: Path) -> dict[str, float]:
    """What a trained model predicts and reads, its weights rounded to 8 bits: on the whole of valid.txt."""
    from spikegpt.checkpoint import load_model
    from spikegpt.evaluation import evaluate_files
    from spikegpt.model.meter import SpikeMeter

    model, packed = rounded(load_model(out))
    with SpikeMeter(model) as meter:
        measured = evaluate_files(model, [text / "valid.txt"], streams=32)
    matrices = model.matrix_parameters()
    return {
        "bits_per_byte": measured.bits_per_byte, "activity": meter.activity, "weights": matrices,
        "bytes_read": meter.activity * matrices + beside_the_matrices(packed),
    }  # fmt: skip


def rounded(model: Any) -> tuple[Any, Any]:
    """A model with its matrices rounded to 8 bits, and the integers: of a continuous one as of an event-driven one."""
    from spikegpt.config import EventConfig
    from spikegpt.engine.integers import IntegerModel
    from spikegpt.training.spikify import event_driven

    if model.config.spikes == "before":
        packed = IntegerModel.of(model)
        made = packed.dequantise()
    else:
        packed = IntegerModel.of(event_driven(model, EventConfig()))
        model.load_state_dict(packed.dequantise().state_dict(), strict=False)
        made = model
    made.tokenizer = model.tokenizer
    return made.eval(), packed


def beside_the_matrices(packed: Any) -> int:
    """Bytes that every token reads whatever fires: scales, norms and other vectors, one row of the embedding."""
    matrices = {name.removesuffix(".scale") + ".weight" for name in packed.arrays if name.endswith(".scale")}
    vectors = {name: array for name, array in packed.arrays.items() if name not in matrices and name != "emb.scale"}
    return sum(array.nbytes for array in vectors.values()) + packed.config.n_embd + 4


def train_and_measure(run: Run, seed: int, text: Path, runs: Path) -> dict[str, Any]:
    """The line of the log that a run is worth; a UsageError if it read other tokens than those before it."""
    from spikegpt.errors import UsageError

    started = time.time()
    out = train(run, seed, text, runs)
    data = json.loads((out / "train.json").read_text())["data"]["train"]["hash"]
    for other in rows():
        if other["data"] != data:
            raise UsageError(
                f"{run.name} was trained on tokens {data}, {other['run']} of the log on {other['data']}: they cannot be "
                f"compared; give the same text and tokenizer, or begin another log than {RESULTS}"
            )
    return {
        "run": run.name, "seed": seed, "width": run.width, "teacher": run.teacher, "tokens": run.tokens,
        "data": data, **measure(out, text), "operations": operations(run), "seconds": round(time.time() - started),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def operations(run: Run) -> float:
    """Operations of its training: 6 for each weight and token, and 2 for each of the teacher's; its own training aside."""

    def matrices(width: int) -> int:
        return DEPTH * 13 * width**2 + VOCABULARY * width

    teacher = 2 * matrices(Run.named(run.teacher).width) if run.teacher else 0
    return float(run.tokens * (6 * matrices(run.width) + teacher))


def speeds(text: Path, runs: Path, tokens: int = 1000) -> dict[str, float]:
    """Tokens per second of the engine on one thread, reading held-out text token by token: event-driven models that are
    finished, the shipped one, and continuous ones of every width of `WIDTHS` as engines that read every weight.

    Engines take turns, so that their ratios hold on a busy machine, each for `TURN` tokens, so that its weights are in the
    caches where they fit, as they are for whoever runs one model; the median over steps. What a dense engine takes does not
    depend on its weights, so those are untrained.
    """
    import numpy as np

    import spikegpt
    from spikegpt.config import ModelConfig
    from spikegpt.engine import EventModel
    from spikegpt.loading import load
    from spikegpt.model.spikegpt import SpikeGPT

    document = (text / "valid.txt").read_text()[: 20 * tokens]
    engines = {"shipped": EventModel.load(Path(spikegpt.__file__).with_name("shipped"), threads=1)}
    for row in rows():
        if row["activity"] < 1:
            folder = Run.named(row["run"]).folder(runs, row["seed"])
            engines[f"{row['run']}-{row['seed']}"] = EventModel.of(load(folder, engine="float"), threads=1)
    for width in WIDTHS:
        shape = ModelConfig(n_layer=DEPTH, n_embd=width, vocab_size=VOCABULARY, spikes="before")
        engines[f"dense-{width}"] = EventModel.of(SpikeGPT(shape), threads=1).dense()
    streams = {name: engine.stream() for name, engine in engines.items()}
    ids = {name: engine.tokenizer.encode(document)[:tokens] for name, engine in engines.items() if engine.tokenizer}
    dense_ids = np.random.default_rng(0).integers(0, VOCABULARY, tokens)
    times: dict[str, list[float]] = {name: [] for name in engines}
    for begin in range(0, min(map(len, [*ids.values(), dense_ids])), TURN):
        for name, stream in streams.items():
            for token in ids.get(name, dense_ids)[begin : begin + TURN].tolist():
                began = time.perf_counter()
                stream.step(token)
                times[name].append(time.perf_counter() - began)
    return {name: round(1 / float(np.median(each))) for name, each in times.items()}


def rows() -> list[dict[str, Any]]:
    """Every finished run, in the order of the log."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="RUN")
    parser.add_argument("--text", type=Path, help="folder of train.txt.xz and valid.txt")
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"), help="where checkpoints go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    wanted = [Run.named(name) for name in arguments.names]
    if (wanted or arguments.speed) and arguments.text is None:
        parser.error("--text FOLDER is needed to train and to time")
    if wanted or arguments.speed:
        import torch

        torch.set_num_threads(arguments.threads)
    done = {(row["run"], row["seed"]) for row in rows()}
    for run in wanted:
        if (run.name, arguments.seed) not in done:
            row = train_and_measure(run, arguments.seed, arguments.text, arguments.runs)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
    if arguments.speed:
        SPEEDS.write_text(json.dumps(speeds(arguments.text, arguments.runs), indent=1) + "\n")
    known = json.loads(SPEEDS.read_text()) if SPEEDS.exists() else {}
    if arguments.table:
        print(table(rows(), known), conclusions(rows()), sep="\n\n")
    if arguments.plot:
        plot(rows(), arguments.plot)


if __name__ == "__main__":
    main()

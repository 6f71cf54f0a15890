"""The table of docs/comprehension.md, row by row; what is measured is kept, so a run that stops is resumed.

    python recipes/comprehension.py DATA --list
    python recipes/comprehension.py DATA --runs runs/comprehension --row sst2-shipped-10 --seeds 0
    python recipes/comprehension.py DATA --row nb-mr
    python recipes/comprehension.py --table

DATA is a folder with `stsa.binary.*`, `stsa.fine.*`, `mr.all`, `subj.all` and `glue-sst2-train.tsv`; of the second table
one with the files that `MORE` names. Each figure is a line
of `recipes/comprehension.jsonl`. Nothing is chosen on a test set: a run has a fixed length and the epoch with the least
loss on the validation rows (the published ones of SST; a tenth of the training rows of each fold of MR and Subj). A model
for one set is never trained on another's text: SST and four fifths of Subj's subjective half are cut from MR's sentences.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spikegpt.data.labelled import Rows, folds_of, read_rows
from spikegpt.task import FinetuneConfig

RESULTS = Path(__file__).with_suffix(".jsonl")
DOCS = Path(__file__).parents[1] / "docs" / "comprehension.md"
FOLDS = 10


@dataclass(frozen=True)
class Set:
    """Where a data set's rows are; without a test file it is cross-validated."""

    title: str
    train: str
    valid: str | None = None
    test: str | None = None
    text: tuple[str, ...] = ()
    """Columns, where names do not tell."""
    label: str | None = None


SETS = {
    "sst2": Set("SST-2, phrases", "glue-sst2-train.tsv", "stsa.binary.dev", "stsa.binary.test"),
    "sst2s": Set("SST-2, sentences", "stsa.binary.train", "stsa.binary.dev", "stsa.binary.test"),
    "sst5": Set("SST-5", "stsa.fine.train", "stsa.fine.dev", "stsa.fine.test"),
    "mr": Set("MR", "mr.all"),
    "subj": Set("Subj", "subj.all"),
}
MORE = {
    "trec": Set("TREC", "TREC.train.all", test="TREC.test.all"),
    "cr": Set("CR", "custrev.all"),
    "mpqa": Set("MPQA", "mpqa.all"),
    "cola": Set(
        "CoLA", "cola-in_domain_train.tsv", "cola-in_domain_dev.tsv", "cola-out_of_domain_dev.tsv", ("4",), "2"
    ),
    "mrpc": Set("MRPC", "mrpc-train.tsv", "mrpc-valid.tsv", "mrpc-test.tsv"),
    "rte": Set("RTE", "rte-train.tsv", test="rte-dev.tsv"),
}
"""The second table."""
ALL = SETS | MORE


@dataclass(frozen=True)
class Start:
    """One way to make a classifier."""

    title: str
    model: str | None = None
    spikes: str = "before"
    settings: dict[str, Any] = field(default_factory=dict)


_SCRATCH = {"lr": 1e-3, "dropout": 0.5, "lookup": 0}
_LANE = {"lookup": 3, "epochs": 2.0}
STARTS = {
    "lane-10": Start(
        "event-driven and look-up lane, from scratch (2x128), 10%",
        "scratch:2x128",
        settings=_SCRATCH | _LANE | {"activity": 0.095},
    ),
    "lane-5": Start(
        "event-driven and look-up lane, from scratch (2x128), 5%",
        "scratch:2x128",
        settings=_SCRATCH | _LANE | {"activity": 0.0475},
    ),
    "lane-shipped-10": Start(
        "event-driven and look-up lane, from the shipped model, 10%",
        settings={"lr": 5e-4, "activity": 0.095, "lookup": 3, "epochs": 1.5},
    ),
    "lane-twin": Start(
        "continuous twin and look-up lane, from scratch (2x128)", "scratch:2x128", "none", _SCRATCH | _LANE
    ),
    "shipped-10": Start(
        "event-driven, from the shipped model, 10%", settings={"lr": 5e-4, "lookup": 0, "activity": 0.095}
    ),
    "shipped-5": Start(
        "event-driven, from the shipped model, 5%", settings={"lr": 5e-4, "lookup": 0, "activity": 0.0475}
    ),
    "scratch-10": Start("event-driven, from scratch, 10%", "scratch:2x256", settings=_SCRATCH | {"activity": 0.095}),
    "scratch-5": Start("event-driven, from scratch, 5%", "scratch:2x256", settings=_SCRATCH | {"activity": 0.0475}),
    "twin": Start("continuous twin, from scratch", "scratch:2x256", "none", _SCRATCH),
    "after": Start("canonical `after`, from scratch", "scratch:2x256", "after", _SCRATCH),
}
EPOCHS = {"sst2": {"shipped": 1.5, "scratch": 2.0}}
ACTIVITY = {"sst2": 0.94}
"""Of the target elsewhere: trained on phrases, more neurons fire on the longer sentences of its validation and test rows."""
BASELINES = ("nb", "tfidf")


def settings_of(task: str, start: str, seed: int) -> FinetuneConfig:
    """The recipe of a row: set once, not tuned."""
    chosen = STARTS[start]
    epochs = EPOCHS.get(task, {}).get("shipped" if chosen.model is None else "scratch", 4.0)
    settings = {"epochs": epochs, "batch_size": 64, "precision": "bf16", "seed": seed} | chosen.settings
    if "activity" in settings:
        settings["activity"] = round(settings["activity"] * ACTIVITY.get(task, 1.0), 4)
    return FinetuneConfig(**settings)


def measure(data: Path, task: str, start: str, seed: int, runs: Path) -> list[dict[str, Any]]:
    """Train one classifier (of a cross-validation, one a fold) and keep each figure as it comes."""
    from spikegpt.training.classify import finetune

    spec, chosen, found = ALL[task], STARTS[start], []
    how = {
        "model": chosen.model, "spikes": chosen.spikes, "config": settings_of(task, start, seed), "text": spec.text,
        "label": spec.label,
    }  # fmt: skip
    folds: list[int | None] = [None] if spec.test else list(range(FOLDS))
    for fold in folds:
        key = {"task": task, "row": start, "seed": seed, "fold": fold}
        if any(key.items() <= line.items() for line in results()):
            continue
        out = runs / "-".join(str(part) for part in (task, start, seed, fold) if part is not None)
        begun = time.process_time()
        if spec.test:
            files = {"valid": data / spec.valid, "test": data / spec.test} if spec.valid else {"test": data / spec.test}
            report = finetune(data / spec.train, out, resume=_begun(out), **files, **how)
        else:
            train, test = fold_files(read_rows(with_texts(data / spec.train, runs)), fold or 0, runs / f"{task}-folds")
            report = finetune(train, out, test=test, resume=_begun(out), **how)
        if report["interrupted"]:
            raise SystemExit(130)
        line = key | {
            "settings": dataclasses.asdict(how["config"]), "test": _short(report["test"]), "valid": _short(report["best"]),
            "cpu_seconds": round(time.process_time() - begun),
        }  # fmt: skip
        keep(line)
        found.append(line)
    return found


def with_texts(path: Path, runs: Path) -> Path:
    """A file of `label text` lines as it is, or a copy in `runs` without the lines that have no text, which are refused."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if len(line.split(None, 1)) > 1]
    if len(kept) == len(lines):
        return path
    runs.mkdir(parents=True, exist_ok=True)
    copy = runs / path.name
    copy.write_bytes(b"".join(kept))
    return copy


def baseline(data: Path, task: str, name: str, runs: Path) -> None:
    """A classical model on the same rows."""
    from spikegpt.baselines import accuracy

    spec = ALL[task]
    columns = {"text": spec.text, "label": spec.label}
    rows = read_rows(data / spec.train if spec.test else with_texts(data / spec.train, runs), **columns)
    for fold in [None] if spec.test else range(FOLDS):
        key = {"task": task, "row": name, "seed": 0, "fold": fold}
        if any(key.items() <= line.items() for line in results()):
            continue
        begun = time.process_time()
        if fold is None:
            files = {"test": spec.test, "valid": spec.valid}
            parts = {name: read_rows(data / file, **columns) for name, file in files.items() if file is not None}
            train = rows
        else:
            number = folds_of(rows, FOLDS, 0)
            train = rows.take(np.flatnonzero(number != fold))
            parts = {"test": rows.take(np.flatnonzero(number == fold))}
        found = {
            part: {"accuracy": accuracy(name, train, each), "rows": len(each.texts)} for part, each in parts.items()
        }
        keep(key | found | {"cpu_seconds": round(time.process_time() - begun)})


def fold_files(rows: Rows, fold: int, where: Path) -> tuple[Path, Path]:
    """The training and test rows of a fold (of `folds_of` with seed 0) as files."""
    number = folds_of(rows, FOLDS, 0)
    where.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, inside in (("train", number != fold), ("test", number == fold)):
        part, path = rows.take(np.flatnonzero(inside)), where / f"{fold}.{name}"
        lines = [f"{label} {text}\n" for label, text in zip(part.labels, part.texts, strict=True)]
        path.write_text("".join(lines), encoding="utf-8")
        paths.append(path)
    return paths[0], paths[1]


def results() -> list[dict[str, Any]]:
    """Every figure measured so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def keep(line: dict[str, Any]) -> None:
    """Append a figure."""
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def table(sets: dict[str, Set]) -> str:
    """Markdown: accuracy in percent, with how many seeds or folds each figure is the mean of."""
    names = {"nb": "Naive Bayes, uni- and bigrams", "tfidf": "TF-IDF words and characters, logistic regression"}
    names |= {name: start.title for name, start in STARTS.items()}
    lines = ["| model | " + " | ".join(spec.title for spec in sets.values()) + " |", "| --- " * (len(sets) + 1) + "|"]
    measured = results()
    for row, title in names.items():
        cells = [
            _cell([line for line in measured if line["row"] == row and line["task"] == task], task) for task in sets
        ]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cell or "not measured" for cell in cells) + " |")
    return "\n".join(lines)


def details(row: str) -> str:
    """Markdown: of one row, calibration error and early exit on test rows, means over seeds or folds."""
    lines = [
        "| set | calibration error | `--stop-at 0.9`: accuracy, tokens read | 0.95 | 0.98 | CPU seconds, file to report |",
        "| --- " * 6 + "|",
    ]
    measured = results()
    for task, spec in ALL.items():
        if found := [line for line in measured if line["row"] == row and line["task"] == task]:
            exits = [_exit(found, stop) for stop in (0.9, 0.95, 0.98)]
            error = 100 * np.mean([line["test"]["calibration_error"] for line in found])
            seconds = f"{np.mean([line['cpu_seconds'] for line in found]):.0f}"
            lines.append(f"| {spec.title} | {error:.1f} | {' | '.join(exits)} | {seconds} |")
    return "\n".join(lines)


def _exit(lines: list[dict[str, Any]], stop: float) -> str:
    """How many points an early exit costs, and the tokens that it reads."""
    lost, read = [], []
    for line in lines:
        (found,) = (each for each in line["test"]["early_exit"] if each["stop"] == stop)
        lost.append(100 * (found["accuracy"] - line["test"]["accuracy"]))
        read.append(found["tokens_read"])
    return f"{np.mean(lost):+.1f}, {np.mean(read):.0%}"


def write_docs() -> None:
    """Put the tables of what is measured into docs/comprehension.md, between their marks."""
    text = DOCS.read_text(encoding="utf-8")
    for name, made in (("first", table(SETS)), ("details", details("lane-10")), ("second", table(MORE))):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = before + begin + made + "\n" + end + rest.split(end)[1]
    DOCS.write_text(text, encoding="utf-8")


def _cell(lines: list[dict[str, Any]], task: str) -> str:
    if not lines:
        return ""
    scores = [100 * line["test"]["accuracy"] for line in lines]
    spread = f" (sd {np.std(scores, ddof=1):.1f})" if len(scores) > 1 else ""
    what = "fold" if ALL[task].test is None else "seed"
    dev = ""
    if ALL[task].test is not None and "valid" in lines[0]:
        dev = f"{np.mean([100 * line['valid']['accuracy'] for line in lines]):.1f} / "
    activity = [line["test"]["activity"] for line in lines if "activity" in line["test"]]
    read = f", {np.mean(activity):.1%} read" if activity else ""
    count = (
        ""
        if "activity" not in lines[0]["test"] and what == "seed"
        else f"; {len(lines)} {what}{'s' * (len(lines) > 1)}"
    )
    return f"{dev}{np.mean(scores):.1f}{spread}{read}{count}"


def _short(report: dict[str, Any]) -> dict[str, Any]:
    names = ("accuracy", "interval", "macro_f1", "calibration_error", "activity", "tokens", "rows")
    exits = {"early_exit": report["early_exit"]} if "early_exit" in report else {}
    return {name: round(report[name], 4) for name in names} | exits


def _begun(out: Path) -> bool:
    return any((out / "checkpoints").glob("step-*"))


def main() -> None:
    """Parse the command line and measure the rows that it names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="folder of the data sets")
    parser.add_argument(
        "--row", action="append", default=[], help="TASK-START, as sst2-shipped-10, or nb-TASK; repeatable"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/comprehension"))
    parser.add_argument("--list", action="store_true", help="the rows that there are")
    parser.add_argument("--table", action="store_true", help="the table of what is measured")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/comprehension.md")
    arguments = parser.parse_args()
    if arguments.list:
        print(*(f"{task}-{start}" for task in ALL for start in STARTS), sep="\n")
        print(*(f"{name}-{task}" for task in ALL for name in BASELINES), sep="\n")
    for row in arguments.row:
        first, _, rest = row.partition("-")
        if first in BASELINES and rest in ALL:
            baseline(arguments.data, rest, first, arguments.runs)
        elif first in ALL and rest in STARTS:
            for seed in arguments.seeds:
                measure(arguments.data, first, rest, seed, arguments.runs)
        else:
            raise SystemExit(f"no row {row}; see --list")
    if arguments.write_docs:
        write_docs()
    if arguments.table:
        print(table(SETS), table(MORE), sep="\n\n")


if __name__ == "__main__":
    main()

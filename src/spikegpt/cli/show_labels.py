"""The report on a classifier, for people; and its pictures."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import UserError
from ..files import write_atomically
from ..label_eval import Comparison
from ..task import TaskConfig

_MOST = 12
"""Labels whose confusion is shown as a table."""


def print_comparison(found: Comparison, task: TaskConfig) -> None:
    """Ours beside Naive Bayes, then calibration, confusion, early exit, cost and the surest mistakes."""
    console, figures = Console(soft_wrap=True, highlight=False), found.figures
    name = {"single": "accuracy", "multi": "F1", "regression": "correlation"}[figures.kind]
    table = Table("", box=None, pad_edge=False)
    table.add_column("Naive Bayes", justify="right")
    table.add_column("this model", justify="right")
    bayes = (
        "-" if found.naive_bayes is None else f"{found.naive_bayes:.1%} +-{100 * (found.naive_bayes_interval or 0):.1f}"
    )
    table.add_row(name, bayes, f"{figures.score:.1%} +-{100 * figures.interval:.1f}")
    for title, value in (("macro F1", figures.macro_f1), ("calibration error", figures.calibration_error)):
        if value is not None:
            table.add_row(title, "", f"{value:.1%}")
    if figures.spearman is not None:
        table.add_row("rank correlation", "", f"{figures.spearman:.3f}")
    console.print(table)
    if found.missing is not None:
        console.print(f"no Naive Bayes: {found.missing}", markup=False)
    console.print(
        f"{figures.rows:,} rows; a decision: {figures.tokens:.0f} tokens, {found.weights_read / 1e6:.2f}M weights read "
        f"({figures.activity:.1%}), {found.picojoules / 1e6:.1f} uJ (45nm-int8, SRAM)"
    )
    if figures.early_exit is not None:
        _print_exits(console, figures.early_exit)
    if figures.confusion is not None and len(figures.confusion) <= _MOST:
        _print_confusion(console, figures.confusion, task)
    if found.mistakes:
        console.print("surest mistakes", style="bold")
        for mistake in found.mistakes:
            console.print(Text(mistake))


def _print_exits(console: Console, exits: list[dict[str, float]]) -> None:
    table = Table(
        "--stop-at", "accuracy", "tokens read", box=None, pad_edge=False, title="early exit", title_justify="left"
    )
    for each in exits:
        table.add_row(f"{each['stop']:g}", f"{each['accuracy']:.1%}", f"{each['tokens_read']:.0%}")
    console.print(table)


def _print_confusion(console: Console, confusion: list[list[int]], task: TaskConfig) -> None:
    table = Table("true \\ given", *task.labels, box=None, pad_edge=False)
    for label, row in zip(task.labels, confusion, strict=True):
        table.add_row(Text(label), *map(str, row))
    console.print(table)


def plot(found: Comparison, task: TaskConfig, path: Path) -> None:
    """Reliability beside confusion, as a picture; UserError without matplotlib or for tasks that have neither."""
    figures = found.figures
    if figures.reliability is None or figures.confusion is None:
        raise UserError("--plot draws reliability and confusion, which only classifiers with one label a text have")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("matplotlib is not installed: pip install 'spikegpt[plot]'") from None
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="calibrated")
    left.plot(
        [b["confidence"] for b in figures.reliability],
        [b["accuracy"] for b in figures.reliability],
        marker="o",
        label="this model",
    )
    left.set(
        xlabel="confidence",
        ylabel="accuracy",
        xlim=(0, 1),
        ylim=(0, 1),
        title=f"calibration error {figures.calibration_error:.1%}",
    )
    left.legend()
    right.imshow(
        [[count / max(1, sum(row)) for count in row] for row in figures.confusion], cmap="Blues", vmin=0, vmax=1
    )
    places = range(len(task.labels))
    right.set_xticks(places, [label[:16] for label in task.labels], rotation=45, ha="right")
    right.set_yticks(places, [label[:16] for label in task.labels])
    right.set(xlabel="given", ylabel="true", title=f"accuracy {figures.score:.1%}")
    if len(task.labels) <= _MOST:
        for true, row in enumerate(figures.confusion):
            for given, count in enumerate(row):
                right.text(given, true, str(count), ha="center", va="center")
    kind = path.suffix.removeprefix(".") or "png"
    write_atomically(path, lambda staged: figure.savefig(staged, format=kind, dpi=150))

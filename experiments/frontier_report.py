"""What the frontier's log says: equal bits, the gap's scaling, a table and a plot."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
VARIANTS = {"first": "first shares", "shared": "shared events"}
"""How the names of event-driven runs end that differ from the others of their width and activity, and how."""


def bytes_read(row: Row) -> float:
    """For a token."""
    return row["bytes_read"]


def dense_like(row: Row, rows: Sequence[Row]) -> list[Row]:
    """The continuous models that read as many tokens, with the same teacher or none, smallest first."""
    same = (row["tokens"], row["teacher"], row["seed"])
    found = [r for r in rows if r["activity"] == 1 and (r["tokens"], r["teacher"], r["seed"]) == same]
    return sorted(found, key=lambda r: r["bytes_read"])


def equal_bits(row: Row, rows: Sequence[Row], cost: Callable[[Row], float] = bytes_read) -> float | None:
    """What a continuous model of the same teacher (or none) would cost for the bits of `row`, over what `row` costs.

    Between two measured models bits are a straight line over the logarithm of the cost. None: outside what was measured.
    """
    for less, more in itertools.pairwise(dense_like(row, rows)):
        if more["bits_per_byte"] <= row["bits_per_byte"] <= less["bits_per_byte"]:
            part = (less["bits_per_byte"] - row["bits_per_byte"]) / (less["bits_per_byte"] - more["bits_per_byte"])
            return cost(less) ** (1 - part) * cost(more) ** part / cost(row)
    return None


def of_twin(row: Row, rows: Sequence[Row]) -> float | None:
    """Bits of an event-driven model over those of the continuous one as wide, with the same tokens and teacher or none."""
    twins = [r for r in dense_like(row, rows) if r["width"] == row["width"]]
    return row["bits_per_byte"] / twins[0]["bits_per_byte"] if twins else None


def fit(widths: Sequence[float], gaps: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """log gap = a + b log width by least squares: (a, b) and their covariance [2, 2]; the gap is bits over the twin's, less 1.

    Two points leave no residual to judge the line by: their covariance is infinite.
    """
    x = np.stack([np.ones(len(widths)), np.log(widths)], 1)
    y = np.log(gaps)
    solution, *_ = np.linalg.lstsq(x, y, rcond=None)
    if len(widths) < 3:
        return solution, np.full((2, 2), np.inf)
    variance = ((y - x @ solution) ** 2).sum() / (len(widths) - 2)
    return solution, variance * np.linalg.inv(x.T @ x)


def predict(width: float, solution: np.ndarray, covariance: np.ndarray) -> tuple[float, float, float]:
    """The gap expected at `width`, and one standard error of the line below and above it."""
    x = np.array([1.0, math.log(width)])
    middle, error = float(x @ solution), float(np.sqrt(x @ covariance @ x))
    return math.exp(middle), math.exp(middle - error), math.exp(middle + error)


def _engine_of(row: Row) -> str:
    """Its name among the speeds: continuous models of a width run alike whatever they learnt."""
    return f"dense-{row['width']}" if row["activity"] == 1 else f"{row['run']}-{row['seed']}"


def table(rows: Sequence[Row], speeds: dict[str, float]) -> str:
    """The log as a Markdown table, by budget and teacher, the best last."""
    lines = [
        "| run | tokens | seed | activity | kB read a token | tokens/s | bits per byte | of its twin | "
        "dense of equal bits reads | and takes | training, 10^15 operations |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]

    def seconds(row: Row) -> float:
        return 1 / speeds.get(_engine_of(row), math.nan)

    for row in sorted(rows, key=lambda r: (r["tokens"], r["teacher"] or "", -r["bits_per_byte"])):
        event = row["activity"] < 1
        twin, more = (of_twin(row, rows), equal_bits(row, rows)) if event else (None, None)
        longer = equal_bits(row, rows, seconds) if event else None
        cells = [
            f"`{row['run']}`", f"{row['tokens'] / 1e6:.2f}M", str(row["seed"]), f"{row['activity']:.1%}",
            f"{row['bytes_read'] / 1e3:.0f}", f"{speeds[key]:,}" if (key := _engine_of(row)) in speeds else "",
            f"{row['bits_per_byte']:.4f}", f"{twin:.1%}" if twin else "", f"{more:.2f}x" if more else "",
            f"{longer:.2f}x" if longer and not math.isnan(longer) else "", f"{row['operations'] / 1e15:.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def conclusions(rows: Sequence[Row]) -> str:
    """What the events cost and buy, and what the scaling of the cost with the width predicts, a line each."""
    lines = []
    events = sorted((row for row in rows if row["activity"] < 1), key=lambda row: (row["tokens"], row["width"]))
    for row in events:
        if (more := equal_bits({**row, "teacher": None}, rows)) is not None:
            lines.append(f"{row['run']}: {more:.2f}x beside continuous models without a teacher")
    for (tokens, asked, teacher, variant), found in _alike(events).items():
        gaps = [(row["width"], gap - 1) for row in found if (gap := of_twin(row, rows)) is not None]
        if len(gaps) >= 3:
            solution, covariance = fit(*zip(*gaps, strict=True))
            expected = (f"{width}: {part[0]:.1%} ({part[1]:.1%} to {part[2]:.1%})"
                        for width in (512, 768) for part in [predict(width, solution, covariance)])  # fmt: skip
            how = f", {VARIANTS[variant]}" if variant else ""
            lines.append(
                f"{asked}% of the weights, {tokens / 1e6:.2f}M tokens, {teacher or 'no teacher'}{how}: the bits lost to the "
                f"twin go as width^{solution[1]:.2f} +- {covariance[1, 1] ** 0.5:.2f}; expected at {', '.join(expected)}"
            )
    return "\n".join(lines)


def _alike(events: Sequence[Row]) -> dict[tuple[int, int, str | None, str | None], list[Row]]:
    """Event-driven runs by tokens, percent of the weights asked for, teacher and variant."""
    groups: dict[tuple[int, int, str | None, str | None], list[Row]] = {}
    for row in events:
        asked = int(row["run"].split("-")[2])
        groups.setdefault((row["tokens"], asked, row["teacher"], _variant(row)), []).append(row)
    return groups


def _variant(row: Row) -> str | None:
    """One of `VARIANTS`, or None."""
    last = row["run"].rpartition("-")[2]
    return last if last in VARIANTS else None


def _mean_over_seeds(rows: Sequence[Row]) -> list[Row]:
    """One row a run, with the mean bits and bytes of its seeds."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row["run"], []).append(row)
    return [
        seeds[0] | {key: float(np.mean([row[key] for row in seeds])) for key in ("bits_per_byte", "bytes_read")}
        for seeds in runs.values()
    ]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bits per byte over bytes read a token: a line for each budget, teacher and activity, its points named by width.

    Seeds are averaged. Left out, for they are in the table: lines of a single point, runs with a teacher of another budget
    than their own, and variants where there is the run that they are a variant of.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    axes = (figure := Figure(figsize=(7.5, 5), layout="constrained")).subplots()
    lines: dict[tuple[float, bool, int], list[Row]] = {}
    names = {row["run"] for row in rows}
    for row in _mean_over_seeds(rows):
        plain = row["run"].removesuffix(f"-{_variant(row)}")
        if "-by-" not in row["run"] and (plain == row["run"] or plain not in names):
            asked = 1.0 if row["activity"] == 1 else int(row["run"].split("-")[2]) / 100
            lines.setdefault((-asked, row["teacher"] is not None, row["tokens"]), []).append(row)
    lines = {key: found for key, found in lines.items() if len(found) > 1}
    colours = dict(
        zip(sorted({-key[0] for key in lines}, reverse=True), ("black", "C0", "C1", "C2", "C3"), strict=False)
    )
    least = min(tokens for _, _, tokens in lines)
    for (asked, taught, tokens), found in sorted(lines.items()):
        found.sort(key=lambda row: row["bytes_read"])
        what = "continuous, every weight" if asked == -1 else f"event-driven, {-asked:.0%} of the weights"
        how = f"{tokens / 1e6:.1f}M tokens, {'with the teacher' if taught else 'from the text alone'}"
        points = [row["bytes_read"] / 1e6 for row in found], [row["bits_per_byte"] for row in found]
        style: dict[str, Any] = {"color": colours[-asked], "marker": "s" if asked == -1 else "o"}
        style |= {"linestyle": "-" if taught else "--", "markerfacecolor": None if taught else "white"}
        axes.plot(*points, alpha=1.0 if tokens == least else 0.4, **style, label=f"{what}; {how}")
        for row, x, y in zip(found, *points, strict=True):
            axes.annotate(f"{row['width']}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set_xscale("log", subs=(2, 5))
    for axis in ("major", "minor"):
        getattr(axes.xaxis, f"set_{axis}_formatter")(FuncFormatter(lambda megabytes, _: f"{megabytes:g}"))
    axes.set_xlabel("MB read a token: weights of 8 bits, scales and vectors (log scale)")
    axes.set_ylabel("bits per byte on held-out books")
    axes.set_title("Six blocks; the number at a point is the width")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)

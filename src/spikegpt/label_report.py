"""Figures of a classifier from its logits: accuracy with its interval, F1, calibration, early exit. Nothing but numpy.

N rows, K labels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .model.classifier import by_length, probabilities, settled, so_far
from .task import TaskConfig

BINS = 10
"""Of confidence, for the calibration error."""
Z = 1.959964
"""Standard deviations of a 95% interval."""
MISTAKES = 10
STOPS = (0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
"""Of early exit, as reports show it."""
FEWEST = 3
"""Tokens that are read before an early exit."""


@dataclass(frozen=True)
class LabelReport:
    """Figures of a classifier on labelled rows. Fields that its kind of task has no use for are None."""

    kind: str
    rows: int
    score: float
    """What is compared: accuracy (single), F1 over all labels given (multi), Pearson's correlation (regression)."""
    interval: float
    """Half the width of the score's 95% interval; Wilson's, or Fisher's of a correlation."""
    tokens: float
    """Tokens a row, on average."""
    activity: float
    """Fraction of the weights that a token reads."""
    loss: float
    """Nats a row at the task's temperature; of a regression, mean squared error in the targets' units."""
    accuracy: float | None = None
    macro_f1: float | None = None
    """Mean F1 of the labels."""
    calibration_error: float | None = None
    """Mean distance of confidence and accuracy over ten bins of confidence, weighted by rows (ECE, arXiv 1706.04599)."""
    reliability: list[dict[str, float]] | None = None
    """Bins that are not empty: confidence, accuracy, rows."""
    confusion: list[list[int]] | None = None
    """[K][K] rows with the label of the row, given the label of the column."""
    early_exit: list[dict[str, float]] | None = None
    """Of each `stop`, accuracy and fraction of tokens read if reading ends once the label is that sure to stay."""
    mistakes: list[int] | None = None
    """Row numbers, from 0, of the surest mistakes."""
    spearman: float | None = None
    """Correlation of ranks."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values under the fields' names, without those that are None."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def summary(self) -> str:
        """One line."""
        name = {"single": "accuracy", "multi": "F1", "regression": "correlation"}[self.kind]
        calibrated = (
            "" if self.calibration_error is None else f", calibration error {100 * self.calibration_error:.1f}%"
        )
        return (
            f"{name} {100 * self.score:.1f}% +-{100 * self.interval:.1f} over {self.rows:,} rows{calibrated}, "
            f"{self.activity:.1%} of the weights read"
        )


def report_on(
    means: np.ndarray, targets: np.ndarray, task: TaskConfig, *, tokens: np.ndarray, activity: float
) -> LabelReport:
    """Figures of mean logits [N, K] of rows of `tokens` [N], at targets as `data.labelled.targets_of` gives them."""
    logits, rows = by_length(means, tokens, task), len(means)
    found = probabilities(logits, task)
    common: dict[str, Any] = {
        "kind": task.kind, "rows": rows, "tokens": float(tokens.mean()), "activity": activity,
        "loss": loss_of(logits, targets, task),
    }  # fmt: skip
    if task.kind == "regression":
        truth, answers = task.offset + task.scale * targets[:, 0], found[:, 0]
        r = _correlation(truth, answers)
        common["loss"] = float(np.mean((truth - answers) ** 2))
        return LabelReport(
            score=r, interval=_fisher(r, rows), spearman=_correlation(_ranks(truth), _ranks(answers)), **common
        )
    if task.kind == "multi":
        limits = np.array(task.thresholds or [0.5] * len(task.labels))
        given, truth = found >= limits, targets > 0.5
        hits = float((given & truth).sum())
        score = 2 * hits / max(1.0, float(given.sum() + truth.sum()))
        f1 = np.mean(
            [_f1((given & truth)[:, k].sum(), given[:, k].sum(), truth[:, k].sum()) for k in range(found.shape[1])]
        )
        exact = float((given == truth).all(1).mean())
        return LabelReport(score=score, interval=wilson(score, rows), accuracy=exact, macro_f1=float(f1), **common)
    given, sure = found.argmax(1), found.max(1)
    right = given == targets
    confusion = _confusion(targets, given, found.shape[1])
    f1 = np.mean([_f1(confusion[k, k], confusion[:, k].sum(), confusion[k].sum()) for k in range(len(confusion))])
    bins = reliability(sure, right)
    wrong = np.flatnonzero(~right)
    return LabelReport(
        score=float(right.mean()), interval=wilson(float(right.mean()), rows), accuracy=float(right.mean()),
        macro_f1=float(f1), reliability=bins, confusion=[[int(count) for count in row] for row in confusion],
        calibration_error=sum(each["rows"] * abs(each["accuracy"] - each["confidence"]) for each in bins) / rows,
        mistakes=wrong[np.argsort(-sure[wrong], kind="stable")][:MISTAKES].tolist(), **common,
    )  # fmt: skip


def loss_of(logits: np.ndarray, targets: np.ndarray, task: TaskConfig) -> float:
    """Mean loss in nats at the task's temperature; of a regression, mean squared error of standardised answers."""
    scaled = logits.astype(np.float64) / task.temperature
    if task.kind == "regression":
        return float(np.mean((logits - targets) ** 2))
    if task.kind == "multi":
        return float(np.mean(np.logaddexp(0, scaled) - targets * scaled))
    top = scaled.max(1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(scaled - top).sum(1))
    return float(np.mean(log_sum - scaled[np.arange(len(targets)), targets]))


def fit_temperature(logits: np.ndarray, targets: np.ndarray, task: TaskConfig) -> float:
    """The temperature in [1/20, 20] of the least loss, to 3 digits: a golden-section search of its logarithm.

    The loss is convex in 1 / temperature, so there is one minimum (temperature scaling, arXiv 1706.04599). A few rows
    without a mistake make nothing certain: of N, targets are smoothed by 1 / (N + 2), much as Platt (1999) does.
    """
    if task.kind == "regression":
        return 1.0
    right = logits[np.arange(len(targets)), targets] if task.kind == "single" else None
    certain = np.mean((targets - 0.5) * logits) if right is None else np.mean(right - logits.mean(1))
    low, high, ratio = -math.log(20), math.log(20), (math.sqrt(5) - 1) / 2

    def loss(log: float) -> float:
        unsmoothed = loss_of(logits, targets, dataclasses.replace(task, temperature=math.exp(log)))
        return unsmoothed + float(certain) / math.exp(log) / (len(targets) + 2)

    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-3:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    return float(f"{math.exp((low + high) / 2):.4g}")


def fit_length(means: np.ndarray, tokens: np.ndarray, targets: np.ndarray, task: TaskConfig) -> TaskConfig:
    """The task with the `length_power`, in tenths, and the `temperature` of the least loss of mean logits [N, K].

    Evidence adds up, so a long text may be surer than a short one of the same mean; words also repeat each other, so by
    less than the sum says. A power above zero must earn what a parameter costs, 1 / N nats (Akaike's criterion).
    """
    tried: list[tuple[float, TaskConfig]] = []
    for tenths in range(11):
        powered = dataclasses.replace(task, length_power=tenths / 10)
        logits = by_length(means, tokens, powered)
        heated = dataclasses.replace(powered, temperature=fit_temperature(logits, targets, powered))
        tried.append((loss_of(logits, targets, heated) + bool(tenths) / len(means), heated))
    return min(tried, key=lambda each: each[0])[1]


def fit_stop(tokens: Sequence[np.ndarray], task: TaskConfig) -> float | None:
    """The `stop_temperature` of the least loss; `tokens` has the logits [T, K] that each token of a held-out row gave.

    What is to be told after each token from the `FEWEST`th on is the label after the last one. None: no row is that long.
    """
    sums = [so_far(logits)[0] for logits in tokens]
    before = [each[FEWEST - 1 : -1] for each in sums]
    ends = [np.full(len(some), each[-1].argmax()) for some, each in zip(before, sums, strict=True)]
    if not sum(map(len, before)):
        return None
    return fit_temperature(np.concatenate(before), np.concatenate(ends), task)


def fit_thresholds(found: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
    """For each label of probabilities [N, K] the threshold, of 0.05 to 0.95, with the best F1; 0.5 wins a tie."""
    steps = sorted(np.arange(1, 20) / 20, key=lambda step: abs(step - 0.5))
    best = []
    for k in range(found.shape[1]):
        truth = targets[:, k] > 0.5
        scores = [
            _f1(((found[:, k] >= step) & truth).sum(), (found[:, k] >= step).sum(), truth.sum()) for step in steps
        ]
        best.append(float(steps[int(np.argmax(scores))]))
    return tuple(best)


def early_exit(tokens: Sequence[np.ndarray], targets: np.ndarray, task: TaskConfig) -> list[dict[str, float]]:
    """For each of `STOPS`: accuracy, and the fraction of tokens read, if reading ends once the label is that sure to stay.

    `tokens` has the logits [T, K] that each token of a row gave; at least `FEWEST` tokens are read.
    """
    rows = [[0.0, 0.0, 0.0] for _ in STOPS]
    for logits, target in zip(tokens, targets, strict=True):
        sums, count = so_far(logits)
        sure, given = settled(sums, count, task), sums.argmax(1)
        for row, stop in zip(rows, STOPS, strict=True):
            passed = np.flatnonzero(sure[FEWEST - 1 :] >= stop)
            at = int(passed[0]) + FEWEST - 1 if len(passed) else len(logits) - 1
            row[0] += given[at] == target
            row[1] += at + 1
            row[2] += len(logits)
    return [
        {"stop": stop, "accuracy": float(row[0] / len(targets)), "tokens_read": row[1] / row[2]}
        for stop, row in zip(STOPS, rows, strict=True)
    ]


def reliability(sure: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Bins of confidence that are not empty: mean confidence [0, 1], accuracy, rows."""
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    bins = [place == k for k in np.unique(place)]
    return [
        {"confidence": float(sure[inside].mean()), "accuracy": float(right[inside].mean()), "rows": int(inside.sum())}
        for inside in bins
    ]


def wilson(share: float, rows: int) -> float:
    """Half the width of Wilson's 95% interval of a proportion."""
    return Z / (1 + Z**2 / rows) * math.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2))


def _fisher(r: float, rows: int) -> float:
    if rows <= 3 or abs(r) >= 1:
        return 0.0 if abs(r) >= 1 else 1.0
    middle, spread = math.atanh(r), Z / math.sqrt(rows - 3)
    return (math.tanh(middle + spread) - math.tanh(middle - spread)) / 2


def _confusion(targets: np.ndarray, given: np.ndarray, labels: int) -> np.ndarray:
    """[K, K] rows with the label of the row, given the label of the column."""
    return np.bincount(targets * labels + given, minlength=labels**2).reshape(labels, labels)


def _f1(hits: float, given: float, truth: float) -> float:
    return 2 * float(hits) / max(1.0, float(given) + float(truth))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, those of equal values their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]

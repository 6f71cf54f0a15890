"""A classifier measured on a labelled file, beside Naive Bayes on the same rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .baselines import accuracy
from .config import ModelConfig
from .data.labelled import Rows, read_rows, targets_of
from .errors import UserError
from .files import read_json
from .label_report import LabelReport, early_exit, report_on, wilson
from .model.classifier import Classifier, numbers_looked_up
from .model.protocol import LanguageModel
from .model.sites import sites
from .profiling.energy import picojoules
from .task import SETTINGS

_MOST_NUMBERS = 50_000_000
"""Logits of single tokens that are kept for early exit; of more rows there is none."""

Report = Callable[[int, int], object]
"""Progress callback: (texts read, total)."""


@dataclass(frozen=True)
class Comparison:
    """What `spikegpt eval` prints of a classifier."""

    figures: LabelReport
    naive_bayes: float | None
    """Accuracy on the same rows, learnt from the rows that the classifier was trained on."""
    naive_bayes_interval: float | None
    missing: str | None
    """Why there is no Naive Bayes."""
    weights_read: float
    """Weights that a decision reads, on average."""
    picojoules: float
    """Energy of a decision on average, by the table 45nm-int8 with SRAM."""
    mistakes: list[str]
    """The surest mistakes: true label, given label, text."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.figures.to_dict() | {
            "naive_bayes": self.naive_bayes, "weights_read": round(self.weights_read),
            "picojoules": round(self.picojoules), "surest_mistakes": self.mistakes,
        }  # fmt: skip


def weights_read(config: ModelConfig, activity: float, tokens: float) -> float:
    """Weights that a text of that many tokens reads: those of events, and the look-up lane's, of whose 16 bits each is two."""
    lane = 0.0 if config.task is None else 2 * numbers_looked_up(config.task, tokens)
    return activity * tokens * sum(site.weights for site in sites(config)) + lane


def measure(model: LanguageModel, rows: Rows, report: Report | None = None) -> LabelReport:
    """Figures of a classifier, float or packed, on labelled rows."""
    classifier = Classifier(model)
    task, encoded = classifier.task, classifier.encode(rows.texts)
    targets, tokens, exits = targets_of(rows, task), np.array([len(row) for row in encoded]), None
    with model.meter() as meter:
        if task.kind == "single" and tokens.sum() * len(task.labels) <= _MOST_NUMBERS:
            each = classifier.every_token(encoded, report)
            logits = np.stack([some.mean(0, dtype=np.float64) for some in each])
            exits = early_exit(each, targets, task)
        else:
            logits = classifier.logits(encoded, report)
    found = report_on(logits, targets, task, tokens=tokens, activity=meter.activity)
    return dataclasses.replace(found, early_exit=exits)


def compare(model: LanguageModel, rows: Rows, train: Rows | None, report: Report | None = None) -> Comparison:
    """Everything that is reported of a classifier on `rows`; Naive Bayes learns from `train`."""
    classifier, figures = Classifier(model), measure(model, rows, report)
    task = classifier.task
    weights = weights_read(model.config, figures.activity, figures.tokens)
    bayes, missing, mistakes = None, None, []
    if task.kind != "single":
        missing = "it is compared for single labels only"
    elif train is None:
        missing = "the rows that it was trained on are not here; name them with --train"
    else:
        try:
            bayes = accuracy("nb", train, rows)
        except UserError as error:
            missing = str(error)
    for number in figures.mistakes or []:
        text = rows.texts[number]
        given = task.labels[int(classifier.logits(classifier.encode([text]))[0].argmax())]
        shown = text if isinstance(text, str) else " | ".join(text)
        mistakes.append(f"{rows.labels[number]} taken for {given}: {shown[:100]}")
    return Comparison(
        figures, bayes, None if bayes is None else wilson(bayes, len(rows.texts)), missing,
        weights, figures.tokens * picojoules(model.config, weights / figures.tokens), mistakes,
    )  # fmt: skip


def trained_on(directory: Path, text: Sequence[str], label: str | None) -> Rows | None:
    """The rows that the classifier in `directory` was trained on; None where they are not there any more."""
    try:
        settings = read_json(directory / SETTINGS)
        return read_rows(Path(settings["data"]), text=text or settings["text"], label=label or settings["label"])
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None

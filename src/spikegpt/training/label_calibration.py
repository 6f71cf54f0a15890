"""What a trained classifier learns of itself on held-out rows: how sure it may be."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..data.labelled import Rows, targets_of
from ..label_report import fit_length, fit_stop, fit_thresholds
from ..model.classifier import Classifier, chances_of
from ..model.spikegpt import SpikeGPT

_LONGEST = 1024
"""Tokens of a row that early exit is fitted on."""
_MOST_NUMBERS = 10_000_000
"""Logits of single tokens that it is fitted on; further rows are left out."""


def calibrate(model: SpikeGPT, rows: Rows) -> None:
    """Fit temperature and length power, early exit (single), thresholds (multi) on held-out rows; into `model.config.task`."""
    classifier = Classifier(model)
    task = classifier.task
    if task.kind == "regression":
        return
    encoded, targets = classifier.encode(rows.texts), targets_of(rows, task)
    means, tokens = classifier.logits(encoded), np.array([len(row) for row in encoded])
    task = fit_length(means, tokens, targets, task)
    if task.kind == "multi":
        task = dataclasses.replace(task, thresholds=fit_thresholds(chances_of(means, tokens, task), targets))
    else:
        short = [row[:_LONGEST] for row in encoded]
        numbers = np.cumsum([len(row) * len(task.labels) for row in short])
        short = short[: max(1, int(np.searchsorted(numbers, _MOST_NUMBERS)))]
        task = dataclasses.replace(task, stop_temperature=fit_stop(classifier.every_token(short), task))
    model.config = dataclasses.replace(model.config, task=task)

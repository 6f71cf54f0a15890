"""Figures of a classifier from its logits."""

import dataclasses

import numpy as np
import pytest

from spikegpt.label_report import FEWEST, early_exit, fit_stop, fit_temperature
from spikegpt.model.classifier import probabilities, settled
from spikegpt.task import TaskConfig

TASK = TaskConfig(labels=("no", "yes"))


def texts(count, length, clear):
    """Logits of single tokens around a mean that is the text's label, or half the wrong way."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, count)
    drift = clear * (2 * labels - 1)[:, None, None] * np.array([-0.5, 0.5])
    return list((drift + generator.normal(size=(count, length, 2))).astype(np.float32)), labels


def test_reading_ends_where_the_label_will_stay():
    """Logits that say little each: after three tokens their mean is as wild as it is settled after all."""
    tokens, labels = texts(600, 30, 0.4)
    fitted = dataclasses.replace(TASK, stop_temperature=fit_stop(tokens[:300], TASK))
    whole = np.mean([each.sum(0).argmax() == label for each, label in zip(tokens[300:], labels[300:], strict=True)])
    found = {each["stop"]: each for each in early_exit(tokens[300:], labels[300:], fitted)}
    assert whole - found[0.99]["accuracy"] < 0.01 and found[0.99]["tokens_read"] < 0.95
    plain = early_exit(tokens[300:], labels[300:], TASK)
    for each in plain:  # at the same reading the sum loses less than the mean's probability
        same = [other for other in found.values() if other["tokens_read"] <= each["tokens_read"]]
        assert not same or max(other["accuracy"] for other in same) >= each["accuracy"] - 0.01
    # What it promises is what happens: of the texts that it is this sure of, as many keep their label.
    sums = np.cumsum(tokens[300:], 1)
    sure = settled(sums, np.arange(1, 31), fitted)[:, FEWEST - 1 : -1]
    stays = (sums.argmax(-1) == sums[:, -1:].argmax(-1))[:, FEWEST - 1 : -1]
    for low, high in ((0.6, 0.7), (0.8, 0.9)):
        inside = (sure >= low) & (sure < high)
        assert stays[inside].mean() == pytest.approx(sure[inside].mean(), abs=0.06)


def test_texts_too_short_to_stop_in():
    assert fit_stop([np.ones((FEWEST, 2), np.float32)], TASK) is None
    (first, *_) = early_exit([np.array([[0.0, 9.0], [9.0, 0.0]], np.float32)], np.array([0]), TASK)
    assert first["tokens_read"] == 1.0  # the first two tokens are always read


def test_a_few_rows_without_a_mistake_do_not_make_it_certain():
    targets = np.arange(20) % 2
    logits = np.where(np.arange(2) == targets[:, None], 3.0, -3.0)
    for kind, wanted in (("single", targets), ("multi", np.eye(2)[targets])):
        task = dataclasses.replace(TASK, kind=kind)
        task = dataclasses.replace(task, temperature=fit_temperature(logits, wanted, task))
        assert probabilities(logits, task).max(1) == pytest.approx(1 - 1 / 22 / 2, abs=1e-3)

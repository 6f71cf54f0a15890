"""Figures of a classifier from its logits."""

import dataclasses

import numpy as np
import pytest

from spikegpt.label_report import FEWEST, early_exit, fit_length, fit_stop, fit_temperature, report_on
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


@pytest.mark.parametrize("adds_up", [True, False])
def test_a_long_text_is_as_sure_as_it_should_be(adds_up):
    """Texts of 2 to 50 tokens whose log odds are the sum of their tokens', or the mean whatever the length."""
    generator = np.random.default_rng(1)
    count = generator.integers(2, 51, 4000)
    log_odds = generator.normal(size=4000) * (0.5 * np.sqrt(count) if adds_up else 2.0)
    targets = (generator.random(4000) < 1 / (1 + np.exp(-log_odds))).astype(int)
    means = np.stack([np.zeros(4000), log_odds / (count if adds_up else 1)], 1)
    held, rest = slice(0, 1000), slice(1000, 4000)
    fitted = fit_length(means[held], count[held], targets[held], TASK)
    assert fitted.length_power >= 0.8 if adds_up else fitted.length_power <= 0.1
    plain = dataclasses.replace(TASK, temperature=fit_temperature(means[held], targets[held], TASK))
    for low, high in ((2, 10), (40, 50)):  # short texts and long ones by themselves
        some = np.flatnonzero((count[rest] >= low) & (count[rest] <= high)) + 1000
        errors = [
            report_on(means[some], targets[some], task, tokens=count[some], activity=0.1).calibration_error
            for task in (fitted, plain)
        ]
        assert errors[0] < 0.06 and (not adds_up or errors[0] < errors[1] - 0.02)


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

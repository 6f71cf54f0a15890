"""A packed classifier: float model and integer engine give the same labels, and only weights of events are read."""

import numpy as np
import pytest
import torch
from places import DATA

from spikegpt.data.labelled import read_rows
from spikegpt.engine import EventModel, FixedEventModel, pack
from spikegpt.engine import run as engine
from spikegpt.errors import UsageError
from spikegpt.label_eval import measure, trained_on
from spikegpt.loading import load
from spikegpt.model.classifier import Classifier
from spikegpt.task import FinetuneConfig
from spikegpt.training.classify import finetune

pytestmark = pytest.mark.skipif(bool(engine.MISSING), reason=f"the engine is not built: {engine.MISSING}")
REVIEWS = DATA / "reviews.csv"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    out = tmp_path_factory.mktemp("reviews") / "run"
    config = FinetuneConfig(epochs=4, lr=1e-2, batch_size=16, dropout=0.0)
    finetune(REVIEWS, out, model="scratch:2x64", tokenizer="bpe:400", config=config, progress=False, device="cpu")
    return out


def test_float_and_integer_labels_agree(directory, tmp_path):
    packed = load(pack(directory, tmp_path / "packed"))
    assert isinstance(packed, EventModel) and packed.config.task == load(directory).config.task
    rows = read_rows(REVIEWS)
    ours, theirs = Classifier(load(directory)), Classifier(packed)
    exact = Classifier(load(tmp_path / "packed", engine="float"))
    chances = [classifier.probabilities(rows.texts) for classifier in (ours, theirs, exact)]
    assert np.abs(chances[1] - chances[2]).max() < 1e-4  # the same weights
    assert np.abs(chances[0] - chances[1]).max() < 1e-3  # training left them at the engine's steps
    assert (chances[0].argmax(1) == chances[1].argmax(1)).all()
    report = measure(packed, rows)
    assert trained_on(tmp_path / "packed", (), None) == rows
    assert report.accuracy > 0.9 and 0 < report.activity < 0.35


def test_the_head_has_a_row_a_label_behind_its_own_neuron(directory):
    model = load(directory, engine="event")
    with model.meter() as meter:
        logits, _ = model(torch.tensor([[1, 2, 3]]))
    assert logits.shape == (1, 3, 2)
    head = meter.counts()[-1]
    assert (head.inputs, head.outputs, head.steps) == (64, 2, 3)


@pytest.mark.parametrize("kind", ["float", "event"])
def test_a_stream_is_the_whole_text_cut_anywhere(directory, kind):
    classifier = Classifier(load(directory, engine=kind))
    text = "worst kettle i have owned in years ; avoid it"
    (row,) = classifier.encode([text])
    stream = classifier.stream()
    for token in row:
        chances = stream.step(int(token))
    whole = classifier.probabilities([text])[0]
    assert chances == pytest.approx(whole, abs=1e-5)
    assert stream.tokens == len(row)
    # The same numbers are the evidence of each word.
    words = classifier.why(text)
    assert [each.word for each in words] == text.split()
    total = sum(each.logits for each in words)
    assert total == pytest.approx(classifier.logits([row])[0], abs=1e-5)


def test_labels_in_integers_only(tmp_path):
    config = FinetuneConfig(epochs=4, lr=1e-2, batch_size=16, dropout=0.0, lookup=0)
    how = {"model": "scratch:2x64", "tokenizer": "bpe:400", "config": config, "progress": False, "device": "cpu"}
    finetune(REVIEWS, tmp_path / "run", **how)
    fixed = load(pack(tmp_path / "run", tmp_path / "fixed", fixed=True))
    assert isinstance(fixed, FixedEventModel) and fixed.config.outputs == 2
    rows = read_rows(REVIEWS)
    models = fixed, load(tmp_path / "run", engine="event")
    chances = [Classifier(model).probabilities(rows.texts) for model in models]
    assert (chances[0].argmax(1) == chances[1].argmax(1)).mean() >= 0.98
    assert measure(fixed, rows).accuracy > 0.9


def test_a_look_up_lane_is_not_done_in_integers_only(directory, tmp_path):
    with pytest.raises(UsageError, match="look-up lane.*finetune --lookup 0"):
        pack(directory, tmp_path / "fixed", fixed=True)
    with pytest.raises(UsageError, match="look-up lane"):
        load(directory, engine="fixed")
    assert not (tmp_path / "fixed").exists()

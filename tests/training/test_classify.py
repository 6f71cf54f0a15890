"""Finetuning end to end on a small file: it learns, resumes to the same bits, keeps the best epoch and leaks nothing."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from places import DATA as FILES
from safetensors.torch import load_file

from spikegpt.data.label_batches import LabelBatches
from spikegpt.data.labelled import read_rows
from spikegpt.errors import UsageError
from spikegpt.label_eval import measure
from spikegpt.loading import load
from spikegpt.model.classifier import Classifier
from spikegpt.task import FinetuneConfig
from spikegpt.training import classify
from spikegpt.training.classify import finetune
from spikegpt.training.run import Run

DATA = FILES / "reviews.csv"
QUICK = FinetuneConfig(epochs=8, lr=1e-2, batch_size=16, dropout=0.0)
HOW = {"model": "scratch:2x32", "tokenizer": "bpe:400", "progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("reviews") / "run"
    return out, finetune(DATA, out, config=QUICK, test=DATA, **HOW)


def test_it_learns_and_says_so(reviews):
    out, report = reviews
    assert report["best"]["accuracy"] >= 0.9
    assert report["best"]["rows"] == 20
    assert 0 < report["best"]["activity"] < 0.35
    assert json.loads((out / "report.json").read_text()) == report
    model = load(out)
    assert model.config.task.labels == ("bad", "good")
    assert model.config.task.temperature != 1.0
    again = measure(model, read_rows(DATA)).to_dict()
    assert again == report["test"]


def test_the_report_is_of_the_best_epoch(reviews):
    out, _ = reviews
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    held_out = [line["valid_loss"] for line in lines if "valid_loss" in line]
    assert len(held_out) == 8
    kept = load_file(out / "best" / "model.safetensors")
    for name, tensor in load(out).state_dict().items():
        if name not in ("head.weight", "lookup.weight"):
            step = kept[name].abs().max() / 127 if tensor.ndim == 2 else 0  # matrices are left at steps of 8 bits
            assert (kept[name] - tensor).abs().max() <= 0.501 * step
    # The look-up lane is fitted afterwards, and has no say unless it lowers the loss.
    assert json.loads((out / "report.json").read_text())["best"]["loss"] <= min(held_out) * 1.001


def test_a_resumed_run_reaches_the_very_same_weights(tmp_path, monkeypatch):
    config = FinetuneConfig(epochs=4, lr=1e-2, batch_size=16, word_dropout=0.1)
    unbroken = finetune(DATA, tmp_path / "a", config=config, **HOW)
    original, waiting = Run.one_step, [1]

    def one_step(self, **arguments):
        result = original(self, **arguments)
        if self.step == 17 and waiting:
            waiting.pop()
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(Run, "one_step", one_step)
    assert finetune(DATA, tmp_path / "b", config=config, **HOW)["interrupted"]
    assert not (tmp_path / "b" / "model.safetensors").exists()
    resumed = finetune(DATA, tmp_path / "b", config=config, resume=True, **HOW)
    for name, tensor in load(tmp_path / "a").state_dict().items():
        assert torch.equal(load(tmp_path / "b").state_dict()[name], tensor), name
    assert {**resumed, "out": ""} == {**unbroken, "out": ""}


def test_training_stops_when_patience_runs_out(tmp_path):
    config = FinetuneConfig(epochs=40, lr=5e-2, batch_size=16, dropout=0.0, patience=2, lookup=0, integers=False)
    report = finetune(DATA, tmp_path / "run", config=config, **HOW)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    held_out = [line["valid_loss"] for line in lines if "valid_loss" in line]
    assert len(held_out) < 40
    assert held_out.index(min(held_out)) == len(held_out) - 3
    assert report["best"]["loss"] == pytest.approx(min(held_out), rel=1e-3)


def test_rows_are_batched_once_an_epoch_and_padding_is_little():
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, 9, size).astype(np.int32) for size in generator.integers(1, 60, 333)]
    batches = LabelBatches(ids, [np.arange(333)], 16, seed=1)
    parts = [LabelBatches(ids, [np.arange(333)], 8, seed=1, rank=rank, world=2) for rank in (0, 1)]
    read, padded, tokens = [], 0, 0
    for _ in range(batches.per_epoch):
        rows, lengths, targets = batches.next_batch()
        both = torch.cat([part.next_batch()[2] for part in parts])
        assert sorted(both.tolist()) == sorted(targets.tolist())
        for row, length, target in zip(rows, lengths, targets, strict=True):
            assert torch.equal(row[:length], torch.from_numpy(ids[target].astype(np.int64)))
        read += targets.tolist()
        padded, tokens = padded + rows.numel(), tokens + int(lengths.sum())
    assert sorted(read) == list(range(333))
    assert tokens == batches.epoch_tokens and padded < 1.1 * tokens
    state, following = batches.state_dict(), batches.next_batch()
    resumed = LabelBatches(ids, [np.arange(333)], 16, seed=1)
    resumed.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(resumed.next_batch(), following, strict=True))


def test_the_lane_is_weighed_against_the_network_on_held_out_rows(tmp_path):
    """Labels that only one word decides, which an untrained network cannot know."""
    generator = np.random.default_rng(0)
    words = np.array(["red", "green", "blue", "black", "white", "pink", "grey", "brown"])
    rows = [(" ".join(generator.choice(words, 12)), bool(generator.integers(2))) for _ in range(200)]
    lines = [f"{'yes' if good else 'no'} {text} {'yacht' if good else 'nasal'}\n" for text, good in rows]
    (tmp_path / "rows").write_text("".join(lines))
    config = FinetuneConfig(epochs=1, lr=1e-6)
    report = finetune(tmp_path / "rows", tmp_path / "run", config=config, **{**HOW, "tokenizer": "bytes"})
    model = load(tmp_path / "run")
    assert report["best"]["accuracy"] == 1.0 and model.config.task.ngrams == 3
    said = {each.word: each.logits[1] - each.logits[0] for each in Classifier(model).why(f"{rows[0][0]} yacht")}
    assert max(said, key=lambda word: said[word]) == "yacht"
    wanted = np.tile([[0.0, 1.0]], (200, 1)).astype(np.float32)
    np.save(tmp_path / "soft.npy", wanted)
    taught = dataclasses.replace(config, distill=1.0, hold_out=0.0)
    finetune(
        tmp_path / "rows", tmp_path / "b", config=taught, teacher=tmp_path / "soft.npy", **{**HOW, "tokenizer": "bytes"}
    )
    assert set(Classifier(load(tmp_path / "b")).probabilities([text for text, _ in rows]).argmax(1)) == {1}


def test_a_lane_that_does_not_help_is_left_out(tmp_path):
    generator = np.random.default_rng(0)
    lines = [f"{generator.integers(2)} {' '.join(generator.choice(list('abcdefgh'), 9))}\n" for _ in range(100)]
    (tmp_path / "rows").write_text("".join(lines))
    finetune(
        tmp_path / "rows", tmp_path / "run", config=FinetuneConfig(epochs=1, lr=1e-6), **{**HOW, "tokenizer": "bytes"}
    )
    model = load(tmp_path / "run")
    assert model.config.task.ngrams == 0 and "lookup.weight" not in model.state_dict()


def test_the_test_rows_touch_nothing(tmp_path, reviews):
    """Neither weights, nor temperature, nor the best epoch change with the rows that are only reported on."""
    rows = DATA.read_text().splitlines()
    flipped = [line.rsplit(",", 1)[0] + (",good" if line.endswith("bad") else ",bad") for line in rows[1:]]
    (tmp_path / "flipped.csv").write_text("\n".join([rows[0], *flipped]))
    report = finetune(DATA, tmp_path / "run", config=QUICK, test=tmp_path / "flipped.csv", **HOW)
    other = load(reviews[0])
    model = load(tmp_path / "run")
    assert model.config == other.config
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert report["test"]["accuracy"] == pytest.approx(1 - reviews[1]["test"]["accuracy"])


def test_texts_in_both_files_are_told(tmp_path, capsys, reviews):
    finetune(DATA, tmp_path / "run", config=FinetuneConfig(epochs=1), test=DATA, **{**HOW, "progress": True})
    assert "careful: 200 of 200 test texts are among the training texts too" in capsys.readouterr().err


def test_cross_validation_tests_on_every_row_once(tmp_path):
    config = FinetuneConfig(epochs=1, lr=1e-2, batch_size=16)
    report = finetune(DATA, tmp_path / "run", config=config, folds=3, **HOW)
    fold = json.loads((tmp_path / "run" / "folds.json").read_text())["fold"]
    assert sorted(np.bincount(fold).tolist()) == [66, 66, 68]
    assert len(report["folds"]) == 3 and report["accuracy"] == pytest.approx(np.mean(report["folds"]))
    before = (tmp_path / "run" / "fold-00" / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "run" / "fold-02" / "report.json").unlink()
    again = finetune(DATA, tmp_path / "run", config=config, folds=3, resume=True, **HOW)
    assert again == report
    assert (tmp_path / "run" / "fold-00" / "model.safetensors").stat().st_mtime_ns == before


def test_a_teacher_is_learnt_from(tmp_path, reviews):
    """Its probabilities say the reverse of the labels, and all the weight is on them."""
    chances = Classifier(load(reviews[0])).probabilities(read_rows(DATA).texts)
    np.save(tmp_path / "soft.npy", chances[:, ::-1])
    config = FinetuneConfig(epochs=8, lr=1e-2, batch_size=16, dropout=0.0, distill=1.0, hold_out=0.0)
    report = finetune(DATA, tmp_path / "run", config=config, teacher=tmp_path / "soft.npy", test=DATA, **HOW)
    assert report["test"]["accuracy"] < 0.2
    for wrong, message in ((chances[1:], "needs"), (chances * 2, "must sum to 1"), (chances * np.nan, "NaN")):
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(UsageError, match=message):
            finetune(DATA, tmp_path / "x", config=config, teacher=tmp_path / "wrong.npy", **HOW)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["multi", "regression"])
def test_other_kinds_of_tasks(tmp_path, kind):
    rows = read_rows(DATA)
    lines = []
    for text, label in zip(rows.texts, rows.labels, strict=True):
        value = float(label == "good") + 0.25 * ("mother" in text)
        names = [label, *(["family"] if "mother" in text else [])]
        lines.append(json.dumps({"text": text, "label": names if kind == "multi" else value}))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    report = finetune(path, tmp_path / "run", config=QUICK, **HOW)
    assert report["best"]["kind"] == kind
    assert report["best"]["score"] > 0.8
    model = load(tmp_path / "run")
    answer = Classifier(model).probabilities(["best kettle i have owned in years"])[0]
    if kind == "multi":
        assert model.config.task.labels == ("bad", "family", "good")
        assert Classifier(model).names(answer) == ["good"]
    else:
        assert answer[0] == pytest.approx(1.0, abs=0.35)


def test_pairs_are_joined(tmp_path):
    rows = read_rows(DATA)
    lines = [
        json.dumps({"sentence1": t, "sentence2": "so i said", "label": b})
        for t, b in zip(rows.texts, rows.labels, strict=True)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    report = finetune(tmp_path / "rows.jsonl", tmp_path / "run", config=QUICK, **HOW)
    assert report["best"]["accuracy"] > 0.8
    with pytest.raises(UsageError, match="reads pairs of texts"):
        Classifier(load(tmp_path / "run")).probabilities(["one text"])


def test_from_a_language_model_with_its_loss_beside(tmp_path, monkeypatch):
    told = []
    original = classify.LabelLoss._next_token
    monkeypatch.setattr(
        classify.LabelLoss, "_next_token", lambda self, *a: told.append(loss := original(self, *a)) or loss
    )
    config = FinetuneConfig(epochs=1, lm=0.5, lr=1e-3, batch_size=64)
    report = finetune(DATA, tmp_path / "run", config=config, progress=False, device="cpu")
    assert told and 1 < told[0].item() < 12
    model = load(tmp_path / "run")
    assert model.head.weight.shape == (2, 256) and model.emb.weight.shape[0] == 4096
    assert report["best"]["activity"] < 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "scratch:huge"}, "scratch:huge is neither"),
        ({"model": None, "tokenizer": "bytes"}, "--tokenizer goes with --model scratch"),
        ({"config": FinetuneConfig(lm=1.0)}, "lm needs a language model"),
        ({"folds": 3, "test": DATA}, "--folds makes its own"),
        ({"text": ["nothing"]}, "no column 'nothing'"),
    ],
)
def test_settings_that_cannot_work_leave_nothing_behind(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        finetune(DATA, tmp_path / "run", **{**HOW, **arguments})
    assert not (tmp_path / "run").exists()

"""finetune, classify and eval of a classifier, end to end on a small file."""

import io
import json
import sys

import numpy as np
import pytest
from places import DATA

from spikegpt import TextClassifier, generate, load
from spikegpt.cli import _run
from spikegpt.data.labelled import read_rows
from spikegpt.errors import UsageError

REVIEWS = DATA / "reviews.csv"
QUICK = ["--model", "scratch:2x32", "--tokenizer", "bpe:400", "--epochs", "8", "--lr", "1e-2", "--batch-size", "16"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    out = tmp_path_factory.mktemp("reviews") / "run"
    assert _run(["finetune", str(REVIEWS), "--out", str(out), "--device", "cpu", *QUICK]) == 0
    return out


def run(*args):
    return _run(list(map(str, args)))


def answers(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_texts_files_and_lines_are_labelled(directory, tmp_path, capsys, monkeypatch):
    (tmp_path / "review.txt").write_text("the lamp broke after a week ; i want my money back")
    assert (
        run(
            "classify",
            "--model",
            directory,
            "i love this kettle and use it every day",
            tmp_path / "review.txt",
            "--json",
            "--why",
        )
        == 0
    )
    good, bad = answers(capsys)
    assert (good["label"], bad["label"]) == ("good", "bad")
    assert good["tokens_not_read"] == 0 and 0 < good["weights_read"] and 0 < good["picojoules"]
    assert good["probabilities"]["good"] == good["probability"] > 0.5
    assert [word for word, _ in good["why"]] == ["i", "love", "this", "kettle", "and", "use", "it", "every", "day"]
    lines = b"worst kettle i have owned in years\n\ni love this lamp and use it every day\n"
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BytesIO(lines)}))
    assert run("classify", "--model", directory, "-", "--lines", "--json") == 0
    assert [each["label"] for each in answers(capsys)] == ["bad", "good"]


def test_an_early_answer_leaves_tokens_unread(directory, capsys):
    text = "worst kettle i have owned in years ; avoid it , avoid it , avoid it"
    assert run("classify", "--model", directory, text, "--stop-at", "0.6", "--json") == 0
    (early,) = answers(capsys)
    assert run("classify", "--model", directory, text, "--json") == 0
    (whole,) = answers(capsys)
    assert early["label"] == whole["label"] == "bad"
    assert early["tokens_not_read"] > 0 and early["tokens"] + early["tokens_not_read"] == whole["tokens"]
    assert early["probability"] >= 0.6 and early["weights_read"] < whole["weights_read"]


def test_the_label_is_watched_as_it_forms(directory, capsys):
    assert run("classify", "--model", directory, "worst kettle i have owned in years ; avoid it", "--watch") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("1 ") and "weights read" in out and "bad" in out


def test_the_label_is_drawn_above_the_spikes(directory, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra: pip install 'spikegpt[plot]'")
    text = "worst kettle i have owned"
    assert run("draw", text, "--model", directory, "--channels", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    tokens = len(load(directory).tokenizer.encode(text))
    assert lines[0].startswith("bad: ") and lines[2].startswith("good: ") and len(lines[1]) == len(lines[3]) == tokens
    assert run("draw", text, "--model", directory, "--out", tmp_path / "label.png") == 0
    assert int.from_bytes((tmp_path / "label.png").read_bytes()[20:24], "big") == 150 * (3.2 + 2.2)


def test_eval_sets_naive_bayes_beside(directory, tmp_path, capsys):
    pytest.importorskip("sklearn", reason="needs the extra: pip install 'spikegpt[report]'")
    pytest.importorskip("matplotlib", reason="needs the extra: pip install 'spikegpt[plot]'")
    picture = tmp_path / "report.png"
    assert run("eval", "--model", directory, "--data", REVIEWS, "--json", "--plot", picture) == 0
    (found,) = answers(capsys)
    assert found["rows"] == 200 and found["accuracy"] > 0.8 and found["naive_bayes"] > 0.9
    assert [sum(row) for row in found["confusion"]] == [100, 100]
    assert found["early_exit"][-1]["tokens_read"] <= 1 and len(found["surest_mistakes"]) <= 10
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert run("eval", "--model", directory, "--data", REVIEWS) == 0
    shown = capsys.readouterr().out
    assert "Naive Bayes" in shown and "calibration error" in shown and "true" in shown


def test_mistakes_are_one_line(directory, tmp_path, capsys):
    (tmp_path / "other.csv").write_text("text,label\nfine,splendid\n")
    cases = [
        (["eval", "--model", directory, "--data", tmp_path / "other.csv"], "which training never saw (bad, good)"),
        (["classify", "--model", directory, ""], "text 1 is empty"),
        (["classify", "--model", directory, "x", "--stop-at", "2"], "--stop-at is a probability"),
        (["classify", "--model", "tiny", "x"], "this is a language model, no classifier"),
        (["generate", "--model", directory, "x"], "this is a classifier"),
        (["finetune", REVIEWS, "--out", directory, *QUICK], "already holds a training run"),
        (
            ["finetune", REVIEWS, "--out", tmp_path / "x", "--label", "mood"],
            "no column 'mood'; it has 'review', 'label'",
        ),
        (["finetune", REVIEWS, "--out", tmp_path / "x", "--epochs", "0"], "epochs=0.0 must be above zero"),
    ]
    for args, message in cases:
        assert run(*args) in (1, 2), args
        err = capsys.readouterr().err
        assert message in err and err.count("error:") == 1, (args, err)
    assert not (tmp_path / "x").exists()


def test_from_python_as_scikit_learn_wants_it(directory, tmp_path):
    rows = read_rows(REVIEWS)
    values = [label == "good" for label in rows.labels]
    made = TextClassifier("scratch:2x32", tokenizer="bpe:400", epochs=4, lr=1e-2, batch_size=16)
    assert made.set_params(**made.get_params()) is made and made.get_params()["epochs"] == 4
    with pytest.raises(UsageError, match="not trained yet"):
        made.predict(["x"])
    made.fit(rows.texts, values)
    assert made.classes_.tolist() == [False, True]
    assert made.score(rows.texts, values) > 0.8
    assert made.predict_proba(rows.texts).sum(1) == pytest.approx(np.ones(200))
    stream = made.stream()
    stream.push("worst kettle i have")
    assert stream.push(" owned in years")[0] > 0.5
    kept = TextClassifier.load(directory)
    assert kept.predict(["i love this kettle and use it every day"]).tolist() == ["good"]
    with pytest.raises(UsageError, match="200 texts have 199 labels"):
        made.fit(rows.texts, values[1:])
    with pytest.raises(UsageError, match="this is a classifier"):
        list(generate(load(directory), "x"))

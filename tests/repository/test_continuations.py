"""experiments/continuations.py: which words are compared, and how repetition shows; the outside model is a stand-in."""

import importlib
import json
import sys

import pytest
from places import ROOT
from tiny import make_model

from spikegpt.checkpoint import save_model

TALE = " ".join(f"word{i}" for i in range(12)) + "."


@pytest.fixture
def module(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    found = importlib.import_module("continuations")
    monkeypatch.setattr(found, "RESULTS", tmp_path / "log.jsonl")
    monkeypatch.setattr(found, "OPENING", 4)
    monkeypatch.setattr(found, "CONTINUATION", 6)
    return found


def test_an_opening_is_the_first_words_behind_the_title(module):
    text = f"THE TITLE\n\n{TALE}\n\n\nToo short.\n\n\n{TALE}"
    pair = ("word0 word1 word2 word3", "word4 word5 word6 word7 word8 word9")
    assert module.openings(text, 10) == [pair, pair]
    assert module.openings(text, 1) == [pair]


def test_repetition_has_few_distinct_words(module):
    assert module.distinct(["a b c d", "e f"], 1) == 1
    assert module.distinct(["A b a b"], 2) == pytest.approx(2 / 3)
    assert module.distinct(["a b", "a b"], 2) == 0.5, "over all texts together"


def test_models_are_measured_beside_the_books_and_once(module, monkeypatch, tmp_path, capsys):
    class Reader:
        def surprise(self, pair):
            assert len(pair[1].split()) <= 6
            return 2.0 if "word9" in pair[1] else 4.0, 2

    monkeypatch.setattr(module, "Reader", Reader)
    save_model(tmp_path / "model", make_model())
    (tmp_path / "valid.txt").write_text(f"{TALE}\n\n\n{TALE}")
    for _ in range(2):
        monkeypatch.setattr(
            sys, "argv", ["", f"mine={tmp_path / 'model'}", "--text", str(tmp_path / "valid.txt"), "--table"]
        )
        module.main()
    rows = [json.loads(line) for line in module.RESULTS.read_text().splitlines()]
    assert [row["model"] for row in rows] == [module.ORIGINALS, "mine"]
    assert "| the books themselves | 2.7 | 1.00x | 50.0% |" in capsys.readouterr().out
    assert rows[1]["perplexity"] / rows[0]["perplexity"] == pytest.approx(2.718, abs=0.001)

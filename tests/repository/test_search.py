"""experiments/search.py: the runs, their teacher, the table and the plot, at a toy size."""

import importlib
import json
import lzma
import sys

import pytest
from places import ROOT

TEXT = "One for sorrow, two for joy, three for a girl and four for a boy.\n"


@pytest.fixture
def search(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    module = importlib.import_module("search")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(module, "SHAPE", {"n_layer": 1, "n_embd": 16, "context": 16, "dropout": 0.0})
    monkeypatch.setattr(module, "TRAIN", {**module.TRAIN, "precision": "no"})
    with lzma.open(tmp_path / "train.txt.xz", "wt") as file:
        file.write(TEXT * 200)
    (tmp_path / "valid.txt").write_text(TEXT * 20)
    return module


def test_runs_are_measured_once_each_and_compared_with_their_twin(search, monkeypatch, tmp_path, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["search.py", *map(str, arguments)])
        search.main()

    where = ("--books", tmp_path, "--runs", tmp_path / "runs", "--steps", 14)
    call("twin", "distilled-30", "uniform-15", "spikified-30", "branched-30", "chained-15", "chained-10", *where)
    rows = {row["run"]: row for row in search.results()}
    assert {row["tokens"] for row in rows.values()} == {14 * 8 * 16}
    assert rows["twin"]["activity"] == 1 and 0 < rows["distilled-30"]["activity"] < 1
    assert (tmp_path / "runs" / "distilled-30-0-14" / "model.safetensors").exists()
    branch = json.loads((tmp_path / "runs" / "branched-30-0-14" / "train.json").read_text())["train"]
    assert (branch["skip"], branch["steps"]) == (8, 6)
    capsys.readouterr()
    call("--table", "--plot", tmp_path / "curve.png")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 7 and lines[2].startswith("| `twin`") and lines[2].endswith("| 100.0% | the yardstick |")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    with pytest.raises(SystemExit):
        call("no-such-run", *where)
    with pytest.raises(SystemExit):
        call("twin", "--books", tmp_path, "--steps", 15)

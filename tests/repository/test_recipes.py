"""The recipes run, at toy sizes."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from places import ROOT
from tiny import make_model

from spikegpt.checkpoint import load_model, save_model

RECIPES = ROOT / "recipes"


def recipe(name, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def eight_bits(monkeypatch):
    return recipe("eight_bits", monkeypatch)


def test_the_tables_of_comprehension_are_those_of_the_log(monkeypatch, tmp_path):
    module = recipe("comprehension", monkeypatch)
    copy = tmp_path / "comprehension.md"
    copy.write_text(module.DOCS.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(module, "DOCS", copy)
    module.write_docs()
    assert copy.read_text(encoding="utf-8") == (ROOT / "docs" / "comprehension.md").read_text(encoding="utf-8")
    assert "not measured" in module.table({"other": module.Set("Other", "x"), **module.SETS})


def test_eight_bits_there_and_back(tmp_path, eight_bits):
    model = make_model()
    save_model(tmp_path / "model", model)
    shards = eight_bits.write_shards(tmp_path / "model", tmp_path / "small", largest=6000)
    sizes = [path.stat().st_size for path in shards.glob("weights-*.safetensors")]
    assert len(sizes) > 3
    assert max(sizes) < 9000
    back = load_model(eight_bits.restore(shards, tmp_path / "back"))
    for (name, before), after in zip(model.state_dict().items(), back.state_dict().values(), strict=True):
        if before.ndim != 2:
            assert torch.equal(after, before), name
        else:
            assert ((after - before).abs() <= before.abs().amax(1, keepdim=True) / 254 * 1.001).all(), name
    eight_bits.write_shards(tmp_path / "back", tmp_path / "small", largest=10**6)
    assert len(list((tmp_path / "small").glob("weights-*"))) == 1


def run(arguments):
    program = [sys.executable, "-W", "ignore", str(RECIPES / "books_46m.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(program, capture_output=True, text=True, timeout=200, env=environment)


def test_books_in_pieces(tmp_path):
    """Stopped by its own clock, gone on with, and measured."""
    text = "\n\n\n".join(f"{n} sheep and {n + 1} goats make {2 * n + 1} animals." for n in range(300))
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(text if name == "train" else text[:2000])
    small = {"n_layer": 1, "n_embd": 16, "context": 16}
    arguments = ["--data", tmp_path, "--runs", tmp_path / "runs", "--set", json.dumps(small)]
    arguments += ["--step-tokens", 64, "--megabytes"]
    stopped = run([*arguments, 0.00384, "--only", "canonical", "--minutes", 0])
    assert stopped.returncode == 75, stopped.stderr[-2000:]
    assert "run the same command again" in stopped.stdout
    done = run([*arguments, 0.00384, "--only", "canonical", "--minutes", 3])
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "runs" / "results.json").read_text())["canonical"]
    assert 0 < results["test bits per byte"] < 8
    assert results["8-bit valid bits per byte"] == pytest.approx(results["valid bits per byte"], rel=0.02)
    assert results["curve"][-1][0] == 60 * 64
    again = run([*arguments, 0.00384, "--only", "canonical", "--minutes", 1])
    assert again.returncode == 0
    assert "all done" in again.stdout
    alone = run([*arguments, 0.00064, "--only", "event-driven"])
    assert alone.returncode == 1 and "learns from the twin: train that first" in alone.stderr
    taught = run([*arguments, 0.00064, "--only", "twin", "event-driven"])
    assert taught.returncode == 0, taught.stderr[-2000:]
    assert set(json.loads((tmp_path / "runs" / "results.json").read_text())) == {"canonical", "twin", "event-driven"}

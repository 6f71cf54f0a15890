import re
import sysconfig

import pytest
from rich.console import Console
from tiny import make_model

from spikegpt.cli import main
from spikegpt.cli import tour as demo
from spikegpt.config import ModelConfig
from spikegpt.engine import EventModel
from spikegpt.engine.run import MISSING
from spikegpt.errors import UserError
from spikegpt.model.meter import LayerActivity


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library and a model that are small enough for a test."""
    for number in range(20):
        (tmp_path / f"module{number}.py").write_text(f"def f{number}(x):\n    return x + {number}\n" * 40)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(demo, "SHAPE", ModelConfig(n_layer=1, n_embd=16, context=16, dropout=0.0))
    return tmp_path


@pytest.mark.parametrize("spikes", ["after", "before"])
def test_the_tour(library, spikes, capsys):
    demo.run(make_model(spikes), "It was", max_tokens=12, seconds=0.1, seed=0)
    out = capsys.readouterr().out
    assert "It was" in out and "12 tokens" in out and "tokens/s" in out
    assert "firing rate" in out and "saturated" in out and "blocks.1" in out
    assert "bits per byte before" in out and re.search(r"\d+ steps", out)


def test_a_packed_model_shows_what_it_did_not_do(capsys):
    demo.run(EventModel.of(make_model("before")), "It was", max_tokens=12, seconds=0, seed=0)
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("products")).replace(",", "").split()
    every, done, spared = (int(row[place]) for place in (1, 2, 3))
    assert every == make_model("before").matrix_parameters()
    assert 0 < done < every and spared == pytest.approx(every - done, abs=1)
    assert "of weights read" in out and "tokens/s, sampling included" in out


@pytest.mark.skipif(bool(MISSING), reason=f"the engine is not built: {MISSING}")
def test_the_shipped_model_skips_silence(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--max-tokens", "8", "--seconds", "0", "--seed", "1"])
    out = capsys.readouterr().out
    assert not stopped.value.code and "What silence saved" in out and "6,160,384" in out


def test_a_continuous_model_has_nobody_to_fire(library, capsys):
    demo.run(make_model("none"), "It was", max_tokens=3, seconds=0)
    out = capsys.readouterr().out
    assert "no neurons" in out and "bits per byte" not in out


def test_a_python_without_sources(library, capsys):
    for file in library.iterdir():
        file.unlink()
    with pytest.raises(UserError, match="without its library's sources"):
        demo.learn(Console(), 1.0)


def test_neurons_of_one_mix_are_counted_together():
    layers = [
        LayerActivity("blocks.0.att.neurons.key", 30, 0.1, 0.0, 0.0),
        LayerActivity("blocks.0.att.neurons.value", 10, 0.5, 0.4, 0.2),
        LayerActivity("head_neuron", 5, 1.0, 0.0, 1.0),
    ]
    console = Console(width=100, record=True, quiet=False)
    console.print(demo.activity_table(layers, ModelConfig(n_layer=1, n_embd=8, spikes="before")))
    rows = [line.split() for line in console.export_text().splitlines()]
    assert rows[1] == ["blocks.0.att", "40", "20.0%", "10.0%", "5.0%"]
    assert rows[2] == ["head_neuron", "5", "100.0%", "0.0%", "100.0%"]

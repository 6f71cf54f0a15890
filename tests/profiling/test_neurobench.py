"""NeuroBench's own harness against our counts."""

import importlib.util

import numpy as np
import pytest
from event_models import KINDS
from tiny import awake

from spikegpt.config import EventConfig, ModelConfig
from spikegpt.errors import UserError
from spikegpt.profiling.counts import profile

needed = ("neurobench", "snntorch")
pytestmark = [
    pytest.mark.skipif(not all(map(importlib.util.find_spec, needed)), reason=f"needs {', '.join(needed)}"),
    pytest.mark.filterwarnings("ignore"),
]
BASE = dict(vocab_size=64, n_layer=2, n_embd=64, spikes="before")
MODELS = {
    "graded": KINDS["graded"],
    "ternary": ModelConfig(**BASE, event=EventConfig(levels=1)),
    "binary": ModelConfig(**BASE, event=EventConfig(levels=1, signed=False)),
    "remembering": ModelConfig(**BASE, event=EventConfig(levels=1, leak=0.5)),
    "canonical": ModelConfig(vocab_size=64, n_layer=2, n_embd=64),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_all_shared_metrics_are_equal(kind: str) -> None:
    from spikegpt.profiling.neurobench import measure

    config = MODELS[kind]
    model = awake(config)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=33)
    theirs, chunk = measure(model, ids), 1 if kind in ("remembering", "canonical") else 32
    ours = profile(model, ids[:32], chunk=chunk).neurobench()
    for name in ("Footprint", "ActivationSparsity", "MembraneUpdates"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-6, abs=1e-9), name
    assert theirs["ConnectionSparsity"] == pytest.approx(ours["ConnectionSparsity"], abs=5e-5)  # rounded to 4 places
    for name, value in ours["SynapticOperations"].items():
        assert theirs["SynapticOperations"][name] == pytest.approx(value, rel=1e-6), name
    assert theirs["SynapticOperations"]["Dense"] > 1000 and theirs["BitsPerToken"] > 1
    assert (theirs["MembraneUpdates"] > 0) == (kind in ("remembering", "canonical"))


def test_an_exception_that_neurobench_swallows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from spikegpt.profiling import neurobench

    def fails(self, *_: object) -> None:
        raise RuntimeError("lost")

    monkeypatch.setattr(neurobench.BitsPerToken, "__call__", fails)
    with pytest.raises(UserError, match=r"reports 0\.0 where a metric failed: .*lost"):
        neurobench.measure(awake(MODELS["graded"]), np.arange(33) % 64)


def test_too_short_a_text_is_refused() -> None:
    from spikegpt.profiling.neurobench import Chunks

    with pytest.raises(UserError, match="too few"):
        Chunks(np.arange(10), 10)

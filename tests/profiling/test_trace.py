"""Spikes and membranes on disk are what the model computed, and take no more memory for a longer text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_model

from spikegpt.cli import main
from spikegpt.config import EventConfig, ModelConfig
from spikegpt.data.corpus import Document
from spikegpt.errors import UserError
from spikegpt.model.neurons import Neuron
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.profiling.trace import parse_layers, texts, trace
from spikegpt.tokenizer import ByteTokenizer

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen."


@torch.no_grad()
def step_by_step(model: SpikeGPT, text: str) -> dict[str, np.ndarray]:
    """Spikes of each neuron, and its membrane in the state, after each token by itself."""
    columns: dict[str, list[torch.Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: columns.setdefault(f"{name}/spikes", []).append(output[0][0, 0])
        )
        for name, module in model.named_modules()
        if isinstance(module, Neuron)
    ]
    state = None
    for token in text.encode():
        _, state = model(torch.tensor([[token]]), state)
        for name, membrane in state.named().items():
            if f"{name}/spikes" in columns:
                columns.setdefault(f"{name}/membrane", []).append(membrane[0])
    for handle in handles:
        handle.remove()
    return {name: torch.stack(rows).numpy() for name, rows in columns.items()}


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("kind", ["after", "before", "leaky", "soft"])
def test_the_file_holds_what_each_token_did(tmp_path: Path, kind: str, chunk: int) -> None:
    if kind in ("after", "before"):
        model = make_model(kind)
    else:
        event = EventConfig(leak=0.7, reset="soft" if kind == "soft" else "hard")
        model = SpikeGPT(ModelConfig(n_layer=2, n_embd=16, spikes="before", event=event), backend="reference").eval()
        model.tokenizer = ByteTokenizer()
    expected = step_by_step(model, TEXT)
    done = trace(model, TEXT, tmp_path / "out.npz", chunk=chunk)
    assert done.tokens == len(TEXT)
    with np.load(tmp_path / "out.npz") as found:
        assert found["tokens"].tolist() == list(TEXT.encode())
        assert set(found) == {"tokens", *expected}
        assert any("membrane" in name for name in found) == (kind != "before")
        assert sum(np.count_nonzero(found[f"{name}/spikes"]) for name in done.neurons) > 0
        for name, rows in expected.items():
            np.testing.assert_allclose(found[name], rows, rtol=1e-4, atol=1e-4, err_msg=name)


def test_layers_are_chosen(tmp_path: Path) -> None:
    done = trace(make_model(), TEXT, tmp_path / "out.npz", layers=[1])
    assert done.neurons == ("blocks.1.lif1", "blocks.1.lif2")


def test_several_texts_are_read_as_one(tmp_path: Path) -> None:
    trace(make_model(), [TEXT[:30], TEXT[30:]], tmp_path / "parts.npz")
    trace(make_model(), TEXT, tmp_path / "whole.npz")
    with np.load(tmp_path / "parts.npz") as parts, np.load(tmp_path / "whole.npz") as whole:
        assert all(np.allclose(parts[name], whole[name], atol=1e-5) for name in whole)


@pytest.mark.parametrize(("text", "layers"), [("0-3", [0, 1, 2, 3]), ("0,2,5", [0, 2, 5]), ("1", [1]), (None, None)])
def test_layers_are_read(text: str | None, layers: list[int] | None) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "a", "0-", "-1", "1-2-3", "0,,1", "0-99999999999"])
def test_what_are_no_layers_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not like 0-3|more than a model has"):
        parse_layers(text)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("after", {"layers": [0, 2]}, "layer 2 is not among the model's, 0 to 1"),
        ("after", {"layers": []}, "no neurons"),
        ("none", {}, "no neurons"),
        ("after", {"texts": ""}, "no text"),
        ("after", {"chunk": 0}, "chunk=0"),
        ("after", {"out": "there.npz"}, "already exists"),
        ("after", {"out": "out.csv"}, r"\.npz"),
        ("after", {"out": "nowhere/out.npz"}, "folder does not exist"),
    ],
)
def test_what_cannot_be_traced_is_refused(tmp_path: Path, kind: str, options: dict[str, Any], message: str) -> None:
    (tmp_path / "there.npz").write_bytes(b"")
    options = {"texts": TEXT, **options, "out": tmp_path / options.get("out", "out.npz")}
    with pytest.raises(UserError, match=message):
        trace(make_model(kind), **options)
    assert os.listdir(tmp_path) == ["there.npz"]


def test_either_a_text_or_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    assert list(texts(None, [tmp_path / "a.txt"])) == [Document(TEXT, True)]
    assert list(texts(TEXT, None)) == [TEXT]
    for both in ((None, None), (TEXT, [tmp_path / "a.txt"])):
        with pytest.raises(UserError, match="not both"):
            texts(*both)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    arguments = [
        "trace",
        "-m",
        "tiny",
        "--layers",
        "0-1",
        "--out",
        str(tmp_path / "o.npz"),
        "-d",
        str(tmp_path / "a.txt"),
    ]
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 0
    assert "blocks.1.lif2" in capsys.readouterr().out
    with np.load(tmp_path / "o.npz") as found:
        assert len(found) == 1 + 2 * 2 * 2
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "--force" in capsys.readouterr().err


_MEASURE = """
import json, sys
from spikegpt.config import ModelConfig
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer
from spikegpt.profiling.trace import trace

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

model = SpikeGPT(ModelConfig(n_layer=2, n_embd=128)).eval()
model.tokenizer = ByteTokenizer()
for length in json.load(sys.stdin):
    open("/proc/self/clear_refs", "w").write("5")
    trace(model, ("x" * 999 for _ in range(length // 999)), "out.npz", chunk=256, force=True)
    print(status("VmHWM"))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    lengths = [999, 999, 9 * 999]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _MEASURE], cwd=tmp_path, input=json.dumps(lengths),
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    _, short, long = map(int, run.stdout.split())
    rows = (lengths[2] - lengths[1]) * 128 * 4 * 5
    """Bytes of the further tokens' spikes and membranes, of which nothing is to stay in memory."""
    assert long - short < rows / 8

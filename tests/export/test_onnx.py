"""The exported ONNX file in onnxruntime: logits of the model, whole and stepwise."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import awake

from spikegpt.cli import main
from spikegpt.config import ModelConfig
from spikegpt.errors import UsageError
from spikegpt.export.onnx import export_onnx

needed = ("onnx", "onnxscript", "onnxruntime")
pytestmark = [
    pytest.mark.skipif(not all(map(importlib.util.find_spec, needed)), reason=f"pip install {' '.join(needed)}"),
    pytest.mark.filterwarnings("ignore"),
]
MODELS = {
    "graded": ModelConfig(vocab_size=64, n_layer=1, n_embd=32, spikes="before"),
    "canonical": ModelConfig(vocab_size=64, n_layer=1, n_embd=32),
}


@pytest.mark.parametrize(("kind", "tokens"), [("graded", 1), ("graded", 12), ("canonical", 1)])
def test_logits_whole_and_stepwise(tmp_path: Path, kind: str, tokens: int) -> None:
    import onnx
    import onnxruntime

    model = awake(MODELS[kind])
    ids = np.random.default_rng(0).integers(64, size=(1, 12))
    with torch.inference_mode():
        expected, _ = model(torch.from_numpy(ids))
    path = tmp_path / f"{tokens}.onnx"
    names = export_onnx(awake(MODELS[kind]), path, tokens=tokens)
    assert {opset.domain for opset in onnx.load(path).opset_import} == {""}  # standard nodes
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = {each.name for each in session.get_inputs()}
    state = {name: tensor.numpy() for name, tensor in model.init_state(1).named().items()}
    found = []
    for at in range(0, 12, tokens):
        feed = {"ids": ids[:, at : at + tokens]} | {name: state[name] for name in names if name in wanted}
        logits, *after = session.run(None, feed)
        state = dict(zip(names, after, strict=True))
        found.append(logits)
    assert np.abs(np.concatenate(found, 1) - expected.numpy()).max() < 1e-5


def test_a_file_that_exists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.onnx").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        export_onnx(awake(MODELS["graded"]), tmp_path / "a.onnx")
    with pytest.raises(SystemExit) as stopped:
        main(["export", "onnx", "shipped", str(tmp_path / "a.onnx")])
    assert stopped.value.code == 2 and "already exists" in capsys.readouterr().err

"""RWKV-4 weights give what other programs compute from them: rwkv.cpp, transformers, the `rwkv` package."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import random_weights
from places import SHARED
from torch import Tensor

from spikegpt.checkpoint import load_model
from spikegpt.config import ModelConfig
from spikegpt.convert import convert
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.model.state import State

TINY = SHARED / "data" / "rwkv4-tiny"
CONFIG = ModelConfig(n_layer=7, n_embd=32, vocab_size=50, spikes="none")
"""Deeper than the 6 layers after which other programs rescale."""


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return random_weights(CONFIG)


@pytest.fixture
def model(weights: dict[str, Tensor]) -> SpikeGPT:
    model = SpikeGPT(CONFIG, backend="reference").eval()
    model.load_state_dict(weights)
    return model


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(CONFIG.vocab_size, (1, 23), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def step_by_step(model: SpikeGPT, ids: Tensor) -> Tensor:
    logits, state = [], None
    for token in ids.split(1, 1):
        step, state = model(token, state)
        logits.append(step)
    return torch.cat(logits, 1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.skipif(not TINY.is_dir(), reason="needs ../shared/data/rwkv4-tiny, a model of rwkv.cpp's own tests")
@torch.no_grad()
def test_a_trained_rwkv_cpp_file_gives_rwkv_cpps_logits(tmp_path: Path) -> None:
    convert(TINY / "tiny-rwkv-4v0-660K-FP32.bin", tmp_path / "model")
    model = load_model(tmp_path / "model", backend="reference")
    assert sum(p.numel() for p in model.parameters()) == 661504
    expected = torch.from_numpy(np.fromfile(TINY / "expected-logits-4v0-660K.bin", np.float32))
    prompt = torch.tensor([list(b'"in')])
    for logits in (model(prompt)[0], step_by_step(model, prompt)):
        assert relative_error(logits[0, -1], expected) < 1e-4


def transformers_model(weights: dict[str, Tensor]) -> Any:
    transformers = pytest.importorskip("transformers", reason="compares with transformers' RWKV-4")
    if not hasattr(transformers, "RwkvForCausalLM"):
        pytest.skip("this version of transformers has no RWKV-4")
    model = transformers.RwkvForCausalLM(
        transformers.RwkvConfig(
            vocab_size=CONFIG.vocab_size, hidden_size=CONFIG.n_embd, num_hidden_layers=CONFIG.n_layer
        )
    )
    renamed = {}
    for name, tensor in weights.items():
        for ours, theirs in (
            ("emb.", "embeddings."), (".ln0.", ".pre_ln."), (".att.", ".attention."), (".ffn.", ".feed_forward."),
            ("time_mix_k", "time_mix_key"), ("time_mix_v", "time_mix_value"), ("time_mix_r", "time_mix_receptance"),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        renamed[name if name.startswith("head.") else f"rwkv.{name}"] = tensor.clone()
    model.load_state_dict(renamed)
    return model.eval()


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_whole_sequences_and_steps_agree_with_transformers(
    model: SpikeGPT, weights: dict[str, Tensor], ids: Tensor
) -> None:
    theirs = transformers_model(weights)
    expected = theirs(ids, use_cache=True).logits
    assert relative_error(model(ids)[0], expected) < 1e-4
    state, steps = None, []
    for token in ids.split(1, 1):
        output = theirs(token, state=state, use_cache=True)
        state = output.state
        steps.append(output.logits)
    assert relative_error(step_by_step(model, ids), torch.cat(steps, 1)) < 1e-4


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_whole_sequences_and_steps_agree_with_the_rwkv_package(
    model: SpikeGPT, weights: dict[str, Tensor], ids: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "RWKV_JIT_ON", "0")
    package = pytest.importorskip("rwkv.model", reason="compares with the rwkv package")
    torch.save(weights, tmp_path / "random.pth")
    theirs = package.RWKV(model=str(tmp_path / "random"), strategy="cpu fp32", verbose=False)
    tokens = ids[0].tolist()
    expected, _ = theirs.forward(tokens, None, full_output=True)
    assert relative_error(model(ids)[0][0], expected) < 1e-4
    state, steps = None, []
    for token in tokens:
        logits, state = theirs.forward([token], state)
        steps.append(logits)
    assert relative_error(step_by_step(model, ids)[0], torch.stack(steps)) < 1e-4


@torch.no_grad()
def test_a_half_precision_rwkv_cpp_file_keeps_its_matrices(model: SpikeGPT, ids: Tensor, tmp_path: Path) -> None:
    """Written here by the format's description, not by our own writer."""
    with (tmp_path / "half.bin").open("wb") as file:
        file.write(struct.pack("<6i", 0x67676D66, 101, CONFIG.vocab_size, CONFIG.n_embd, CONFIG.n_layer, 1))
        for name, tensor in model.state_dict().items():
            values = tensor.squeeze()
            if "time_decay" in name:
                values = -torch.exp(values)
            kind = int(values.ndim == 2)
            data = values.numpy().astype("<f2" if kind else "<f4")
            file.write(struct.pack("<3i", values.ndim, len(name), kind))
            file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)) + name.encode() + data.tobytes())
    characters = {str(i): chr(65 + i) for i in range(CONFIG.vocab_size)}
    (tmp_path / "chars.json").write_text(json.dumps(characters), "utf-16")
    convert(tmp_path / "half.bin", tmp_path / "model", tokenizer=str(tmp_path / "chars.json"))
    loaded = load_model(tmp_path / "model", backend="reference")
    for name, tensor in model.state_dict().items():
        tolerance = 1e-3 if tensor.ndim == 2 else 1e-6
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=tolerance, atol=tolerance)
    assert relative_error(loaded(ids)[0], model(ids)[0]) < 1e-2


def test_state_shapes_are_those_of_five_vectors_a_layer(model: SpikeGPT, ids: Tensor) -> None:
    """RWKV-4's whole memory: two shifts and three accumulators in each layer."""
    _, state = model(ids)
    assert isinstance(state, State)
    assert sum(tensor.numel() for tensor in state.named().values()) == 5 * CONFIG.n_layer * CONFIG.n_embd

"""The published model against what the reference computes on weights that it trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import DATA, SHARED
from torch import Tensor

from spikegpt import ops
from spikegpt.config import ModelConfig
from spikegpt.model.neurons import LIF
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.model.state import State
from spikegpt.training.loss import loss_fn

MODELS = {
    "official-rwkv-3x64": ModelConfig(n_layer=3, n_embd=64, vocab_size=256, dropout=0),
    "official-ffnpre-7x64": ModelConfig(n_layer=7, n_embd=64, vocab_size=77, architecture="RWKV-ffnPre", dropout=0),
}
HANDFUL = 4
"""Spikes of a whole file that may differ, where the first of them lies within rounding of the threshold."""
ROUNDING = 1e-5


def golden_folder(name: str) -> Path:
    """Where the reference's results are; the test skips where they are not."""
    for folder in (DATA / "golden", SHARED / "golden"):
        if (folder / f"{name}.npz").is_file():
            return folder
    pytest.skip(f"needs {name}, which is not part of the repository")


@pytest.fixture(params=MODELS)
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    folder = golden_folder(request.param)
    with np.load(folder / f"{request.param}.npz") as arrays:
        weights = torch.load(folder / f"{request.param}.pth", weights_only=True)
        return {"config": MODELS[request.param], "weights": weights, **arrays}


@pytest.fixture(params=["reference", "native", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    there = ops.available().get(request.param, "not part of this version")
    if there is not True or request.param == "triton":
        pytest.skip(f"backend {request.param}: {there if there is not True else 'computes on a GPU'}")
    return request.param


def build(golden: dict[str, Any], backend: str) -> SpikeGPT:
    model = SpikeGPT(golden["config"], backend=backend)
    model.load_state_dict(golden["weights"])
    return model


@contextmanager
def watch(model: SpikeGPT) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """The spikes and potentials H, each [B, T, C], of every LIF neuron, one entry a call."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def note(name: str, neuron: LIF, x: Tensor, membrane: Tensor, spikes: Tensor) -> None:
        potentials = []
        for x_t, s_t in zip(x.detach().unbind(1), spikes.detach().unbind(1), strict=True):
            potentials.append(membrane + (x_t - membrane) / neuron.tau)
            membrane = (1 - s_t) * potentials[-1]
        seen.setdefault(name, []).append((spikes.detach(), torch.stack(potentials, 1)))

    hooks = [
        module.register_forward_hook(
            lambda module, args, output, name=name: note(name, module, args[0], args[1].detach(), output[0])
        )
        for name, module in model.named_modules()
        if isinstance(module, LIF)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def assert_same_spikes(
    seen: dict[str, list[tuple[Tensor, Tensor]]], expected: dict[str, Tensor], threshold: float = 1.0
) -> None:
    """Equal but for a handful that begins within rounding of the threshold."""
    assert seen.keys() == expected.keys()
    flipped = 0
    for name, calls in seen.items():
        spikes, potentials = (torch.cat(parts, 1) for parts in zip(*calls, strict=True))
        flips = spikes.bool() != expected[name].bool()
        if flips.any() and not flipped:
            first = flips.any(2).any(0).nonzero()[0]
            margins = (potentials[:, first] - threshold).abs()[flips[:, first]]
            assert margins.min() < ROUNDING, f"{name} differs at a potential {margins.min():.2g} from the threshold"
        flipped += int(flips.sum())
    assert flipped <= HANDFUL


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_logits_and_spikes_are_the_references(golden: dict[str, Any], backend: str) -> None:
    model = build(golden, backend)
    with watch(model) as seen, torch.no_grad():
        logits, _ = model(torch.from_numpy(golden["tokens"]))
    assert relative_error(logits, torch.from_numpy(golden["logits"])) < 1e-4
    prefix = "spikes/"
    assert_same_spikes(
        seen, {name.removeprefix(prefix): torch.from_numpy(golden[name]) for name in golden if name.startswith(prefix)}
    )


def test_every_gradient_is_the_references(golden: dict[str, Any], backend: str) -> None:
    model = build(golden, backend)
    logits, _ = model(torch.from_numpy(golden["tokens"]))
    loss = loss_fn(logits, torch.from_numpy(golden["targets"]), 1e-4)
    loss.backward()
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-5)
    expected = {name.removeprefix("grad/"): golden[name] for name in golden if name.startswith("grad/")}
    assert expected.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert relative_error(parameter.grad, torch.from_numpy(expected[name])) < 1e-3, name


def test_the_logit_term_is_in_the_references_gradient(golden: dict[str, Any]) -> None:
    expected = torch.from_numpy(golden["grad/head.weight"])
    errors = []
    for penalty in (1e-4, 0):
        model = build(golden, "reference")
        logits, _ = model(torch.from_numpy(golden["tokens"]))
        loss_fn(logits, torch.from_numpy(golden["targets"]), penalty).backward()
        assert model.head.weight.grad is not None
        errors.append(relative_error(model.head.weight.grad, expected))
    assert errors[0] < errors[1] / 20


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_of_any_size_give_the_whole(golden: dict[str, Any], backend: str, chunk: int) -> None:
    model, tokens = build(golden, backend), torch.from_numpy(golden["tokens"])
    state: State | None = None
    with torch.no_grad():
        with watch(model) as whole:
            expected, last = model(tokens)
        with watch(model) as seen:
            parts = []
            for part in tokens.split(chunk, 1):
                logits, state = model(part, state)
                parts.append(logits)
    assert_same_spikes(seen, {name: calls[0][0] for name, calls in whole.items()})
    assert relative_error(torch.cat(parts, 1), expected) < 1e-4
    assert state is not None
    for name, tensor in state.named().items():
        torch.testing.assert_close(tensor, last.named()[name], rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_are_independent(golden: dict[str, Any], backend: str) -> None:
    model, tokens = build(golden, backend), torch.from_numpy(golden["tokens"])
    with torch.no_grad():
        with watch(model) as together:
            logits, _ = model(tokens)
        for row in range(len(tokens)):
            with watch(model) as alone:
                own, _ = model(tokens[row : row + 1])
            assert_same_spikes(alone, {name: calls[0][0][row : row + 1] for name, calls in together.items()})
            assert relative_error(own, logits[row : row + 1]) < 1e-4

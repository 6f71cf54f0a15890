"""The published generation script's behaviour, against a token-by-token loop written from its description."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from foreign import random_weights
from torch import Tensor

from spikegpt.config import ModelConfig
from spikegpt.errors import UsageError
from spikegpt.generation.published import reference_generation, rescaled
from spikegpt.model.spikegpt import SpikeGPT

LAYERS, CHANNELS, TOKENS = 13, 32, 40


class Script:
    """One token at a time: matrices halved every 6 layers, the residual too, membranes and accumulators in a list."""

    def __init__(self, weights: dict[str, Tensor], vocab_size: int) -> None:
        self.weights, self.vocab_size = weights, vocab_size
        zeros = torch.zeros(LAYERS, CHANNELS)
        self.membranes = [zeros.clone(), zeros.clone()]
        self.shifts = [zeros.clone(), zeros.clone()]
        self.top, self.above, self.below = zeros - 1e30, zeros.clone(), zeros.clone()

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (CHANNELS,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def fire(self, which: int, layer: int, current: Tensor) -> Tensor:
        potential = self.membranes[which][layer] + (current - self.membranes[which][layer]) / 2
        spikes = (potential >= 1).float()
        self.membranes[which][layer] = potential * (1 - spikes)
        return spikes

    def mixed(self, x: Tensor, which: int, layer: int, mix: Tensor) -> Tensor:
        return x * mix.flatten() + self.shifts[which][layer] * (1 - mix.flatten())

    def step(self, token: int) -> Tensor:
        w = self.weights
        x = w["emb.weight"][token]
        if self.vocab_size == 77:
            x = (x >= 0).float()
        x = self.norm(x, "blocks.0.ln0")
        for layer in range(LAYERS):
            block, scale = f"blocks.{layer}", 2 ** (layer // 6)
            x = x + self.fire(0, layer, self.attend(self.norm(x, f"{block}.ln1"), layer, block, scale))
            x = x + self.fire(1, layer, self.feed(self.norm(x, f"{block}.ln2"), layer, block, scale))
            if (layer + 1) % 6 == 0:
                x = x / 2
        return w["head.weight"] @ self.norm(x, "ln_out")

    def attend(self, x: Tensor, layer: int, block: str, scale: int) -> Tensor:
        w = self.weights
        k, v, r = (
            w[f"{block}.att.{name}.weight"] @ self.mixed(x, 0, layer, w[f"{block}.att.time_mix_{name[0]}"])
            for name in ("key", "value", "receptance")
        )
        self.shifts[0][layer] = x
        now = w[f"{block}.att.time_first"] + k
        top = torch.maximum(self.top[layer], now)
        past, present = torch.exp(self.top[layer] - top), torch.exp(now - top)
        y = (past * self.above[layer] + present * v) / (past * self.below[layer] + present)
        faded = self.top[layer] - torch.exp(w[f"{block}.att.time_decay"])
        top = torch.maximum(faded, k)
        past, present = torch.exp(faded - top), torch.exp(k - top)
        self.above[layer] = past * self.above[layer] + present * v
        self.below[layer] = past * self.below[layer] + present
        self.top[layer] = top
        return (w[f"{block}.att.output.weight"] / scale) @ (torch.sigmoid(r) * y)

    def feed(self, x: Tensor, layer: int, block: str, scale: int) -> Tensor:
        w = self.weights
        k = w[f"{block}.ffn.key.weight"] @ self.mixed(x, 1, layer, w[f"{block}.ffn.time_mix_k"])
        r = w[f"{block}.ffn.receptance.weight"] @ self.mixed(x, 1, layer, w[f"{block}.ffn.time_mix_r"])
        self.shifts[1][layer] = x
        return torch.sigmoid(r) * ((w[f"{block}.ffn.value.weight"] / scale) @ torch.relu(k) ** 2)


def make(vocab_size: int, **settings: object) -> tuple[SpikeGPT, dict[str, Tensor]]:
    config = ModelConfig(n_layer=LAYERS, n_embd=CHANNELS, vocab_size=vocab_size, **settings)  # type: ignore[arg-type]
    weights = random_weights(config)
    model = SpikeGPT(config, backend="reference").eval()
    model.load_state_dict(weights)
    return model, weights


@pytest.mark.parametrize("vocab_size", [77, 78])
@torch.no_grad()
def test_it_is_the_scripts_function(vocab_size: int) -> None:
    model, weights = make(vocab_size)
    ids = torch.randint(vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    script = Script(weights, vocab_size)
    expected = torch.stack([script.step(token) for token in ids[0].tolist()])
    trained, generated = model(ids)[0][0], reference_generation(model)(ids)[0][0]
    torch.testing.assert_close(generated, expected, rtol=1e-3, atol=1e-3)
    assert (trained - expected).norm() / expected.norm() > 0.1


@torch.no_grad()
def test_the_model_itself_stays_as_it_was() -> None:
    model, weights = make(50)
    ids = torch.arange(20)[None]
    before = model(ids)[0]
    reference_generation(model)
    assert torch.equal(model(ids)[0], before)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())


@torch.no_grad()
def test_rescaling_changes_nothing_in_rwkv() -> None:
    model, _ = make(50, spikes="none")
    ids = torch.arange(20)[None]
    expected = model(ids)[0]
    assert (rescaled(model)(ids)[0] - expected).norm() / expected.norm() < 1e-3


@pytest.mark.parametrize("settings", [{"spikes": "none"}, {"spikes": "before"}, {"architecture": "RWKV-ffnPre"}])
def test_models_that_the_script_cannot_run_are_refused(settings: dict[str, str]) -> None:
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=8, vocab_size=77, **settings))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="reference"):
        reference_generation(model)

"""experiments/prices.py: what the smallest events of each matrix are worth."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from places import ROOT
from tiny import make_model

from spikegpt.model.allocation import emphasis_of


@pytest.fixture
def prices(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("prices")


def test_a_price_is_what_silencing_by_hand_costs(prices):
    model = make_model("before").eval()
    windows = torch.randint(model.config.vocab_size, (3, 20), generator=torch.Generator().manual_seed(0))
    found = {price.name: price for price in prices.prices(model, windows)}
    assert set(found) == set(emphasis_of(model.config))
    sent = []
    neuron = model.head_neuron
    neuron.register_forward_hook(lambda _m, _i, output: sent.append(output[0]))
    with torch.inference_mode():
        logits, _ = model(windows[:, :-1])
        events = torch.where(sent[0].abs() == 1, 0, sent[0])
        without = model.head(events, neuron.unit)
    assert 0 < (sent[0].abs() == 1).sum() < sent[0].numel()
    targets = windows[:, 1:]
    lost = F.cross_entropy(without.transpose(1, 2), targets) - F.cross_entropy(logits.transpose(1, 2), targets)
    assert found["head"].nats == pytest.approx(lost.item(), abs=1e-6)
    small = int((sent[0].abs() == 1).sum())
    assert found["head"].saved == pytest.approx(small / targets.numel() * neuron.fan_out / model.matrix_parameters())
    assert not neuron.training and len(neuron._forward_hooks) == 1  # its own are gone again


def test_shares_move_towards_what_is_dear_by_half_a_step(prices):
    """Two blocks of two kinds, and each price pooled with those of its block and its kind."""
    nats = {(0, "a"): 4.0, (0, "b"): 2.0, (1, "a"): 0.0, (1, "b"): -6.0}
    found = [prices.Price(f"{block}{kind}", kind, block, lost, 0.0, 0.01) for (block, kind), lost in nats.items()]
    pooled = prices.pooled(found)
    assert pooled == pytest.approx({"0a": (3 + 2) / 2, "0b": (3 - 2) / 2, "1a": (-3 + 2) / 2, "1b": (-3 - 2) / 2})
    evened = prices.evened(dict.fromkeys(pooled, 1.0), found)
    mean = (2.5 + 0.5) / 4
    assert evened["0a"] == pytest.approx((2.5 / mean) ** 0.5, abs=1e-4)
    assert evened["0b"] == pytest.approx((0.5 / mean) ** 0.5, abs=1e-4)
    assert evened["1a"] == evened["1b"] == 0.5  # they do harm: as far down as one step goes
    nothing = [prices.Price("0a", "a", 0, 0.0, 0.0, 0.0)]
    assert prices.evened({"0a": 1.0}, nothing) == {"0a": 1.0}

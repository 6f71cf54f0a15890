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
    found = [prices.Price("a", 4.0, 0.0, 0.01), prices.Price("b", 1.0, 0.0, 0.01), prices.Price("c", -1.0, 0.0, 0.01)]
    evened = prices.evened({"a": 1.0, "b": 1.0, "c": 1.0}, found)
    mean = 5.0 / 3
    assert evened["a"] == pytest.approx((4 / mean) ** 0.5, abs=1e-4) and evened["b"] == pytest.approx(
        (1 / mean) ** 0.5, abs=1e-4
    )
    assert evened["c"] == 0.5  # it does harm: as far down as one step goes
    assert prices.evened({"a": 1.0}, [prices.Price("a", 0.0, 0.0, 0.0)]) == {"a": 1.0}

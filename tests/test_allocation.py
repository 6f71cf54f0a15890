"""Activity is spent where it helps, and adds up to what was asked for."""

import pytest

from spikegpt.config import EMPHASIS, ConfigError, EventConfig, ModelConfig
from spikegpt.model.allocation import allocate, weights
from spikegpt.model.spikegpt import SpikeGPT


def config(**event) -> ModelConfig:
    return ModelConfig(n_layer=3, n_embd=32, n_ffn=96, vocab_size=100, spikes="before", event=EventConfig(**event))


def spent(model: ModelConfig, shares: dict[str, float]) -> float:
    sizes = weights(model)
    return sum(sizes[kind] * shares[kind] for kind in sizes) / sum(sizes.values())


@pytest.mark.parametrize("architecture", ["RWKV", "RWKV-ffnPre"])
def test_weights_are_counted_as_the_model_has_them(architecture):
    shape = ModelConfig.from_dict({**config().to_dict(), "architecture": architecture})
    assert sum(weights(shape).values()) == SpikeGPT(shape).matrix_parameters()


@pytest.mark.parametrize("activity", [0.001, 0.06, 0.3, 0.7, 0.95, 1.0])
def test_shares_add_up_and_stay_shares(activity):
    shares = allocate(config(), activity)
    assert spent(config(), shares) == pytest.approx(activity)
    assert 0 < min(shares.values()) <= max(shares.values()) <= 1


def test_ratios_are_the_emphasis_below_one():
    shares = allocate(config(), 0.1)
    assert shares["att.value"] / shares["ffn.value"] == pytest.approx(EMPHASIS["att.value"] / EMPHASIS["ffn.value"])
    equal = allocate(config(emphasis={}), 0.1)
    assert equal == dict.fromkeys(equal, pytest.approx(0.1))
    twice = allocate(config(emphasis={"head": 2}), 0.1)
    assert twice["head"] == pytest.approx(2 * twice["att.key"])


def test_every_neuron_is_given_its_share():
    model = SpikeGPT(config(activity=0.1, start_activity=0.5))
    shares, at_first = allocate(model.config, 0.1), allocate(model.config, 0.5)
    assert model.head_neuron.target(1.0) == pytest.approx(shares["head"])
    assert model.blocks[1].ffn.neurons["value"].target(0.0) == pytest.approx(at_first["ffn.value"])
    assert model.blocks[2].att.neurons["key"].target(1.0) == pytest.approx(shares["att.key"])


def test_an_unknown_kind_is_named():
    with pytest.raises(ConfigError, match="not of 'att.keys'"):
        EventConfig(emphasis={"att.keys": 1})
    with pytest.raises(ConfigError, match=r"emphasis of head=0 must be above zero"):
        EventConfig(emphasis={"head": 0})
    with pytest.raises(ConfigError, match="an object of numbers"):
        ModelConfig.from_dict({"spikes": "before", "event": {"emphasis": 3}})

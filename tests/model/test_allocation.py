"""Activity is spent where it helps, and adds up to what was asked for."""

import pytest

from spikegpt.config import EMPHASIS, FIRST_EMPHASIS, ConfigError, EventConfig, ModelConfig
from spikegpt.model import SpikeGPT
from spikegpt.model.allocation import allocate
from spikegpt.model.sites import sites


def config(**event) -> ModelConfig:
    return ModelConfig(n_layer=3, n_embd=32, n_ffn=96, vocab_size=100, spikes="before", event=EventConfig(**event))


def spent(model: ModelConfig, shares: dict[str, float]) -> float:
    table = sites(model)
    return sum(site.weights * shares[site.name] for site in table) / sum(site.weights for site in table)


@pytest.mark.parametrize("activity", [0.001, 0.06, 0.3, 0.7, 0.95, 1.0])
def test_shares_add_up_and_stay_shares(activity):
    shares = allocate(config(), activity)
    assert spent(config(), shares) == pytest.approx(activity)
    assert 0 < min(shares.values()) <= max(shares.values()) <= 1


def test_ratios_are_the_emphasis_below_one():
    shares = allocate(config(), 0.1)
    expected = EMPHASIS["att.value"] / EMPHASIS["ffn.value"]
    assert shares["blocks.0.att.value"] / shares["blocks.2.ffn.value"] == pytest.approx(expected)
    equal = allocate(config(emphasis={}), 0.1)
    assert equal == dict.fromkeys(equal, pytest.approx(0.1))
    twice = allocate(config(emphasis={"head": 2}), 0.1)
    assert twice["head"] == pytest.approx(2 * twice["blocks.1.att.key"])


def test_a_model_whose_config_says_null_keeps_the_shares_it_was_trained_with():
    stored = ModelConfig.from_dict({**config().to_dict(), "event": {**config().to_dict()["event"], "emphasis": None}})
    first, now = allocate(stored, 0.1), allocate(config(), 0.1)
    assert first == allocate(config(emphasis=dict(FIRST_EMPHASIS)), 0.1)
    assert now == allocate(config(emphasis=dict(EMPHASIS)), 0.1) != first
    assert config().to_dict()["event"]["emphasis"] == EMPHASIS  # and a new one says which it has


def test_a_single_matrix_goes_before_its_kind():
    given = config(emphasis={"att.key": 2, "blocks.1.att.key": 3})
    shares = allocate(given, 0.1)
    assert spent(given, shares) == pytest.approx(0.1)
    other = shares["blocks.1.att.value"]
    assert shares["blocks.0.att.key"] == shares["blocks.2.att.key"] == pytest.approx(2 * other)
    assert shares["blocks.1.att.key"] == pytest.approx(3 * other)


def test_every_neuron_is_given_its_share():
    model = SpikeGPT(config(activity=0.1, start_activity=0.5, emphasis={"blocks.2.att.key": 0.5}))
    shares, at_first = allocate(model.config, 0.1), allocate(model.config, 0.5)
    assert model.head_neuron.target() == pytest.approx(shares["head"])
    assert model.blocks[2].att.neurons["key"].target() == pytest.approx(shares["blocks.2.att.key"])
    model.set_progress(0.0)
    assert model.blocks[1].ffn.neurons["value"].target() == pytest.approx(at_first["blocks.1.ffn.value"])
    assert model.blocks[2].att.neurons["key"].target() == pytest.approx(at_first["blocks.2.att.key"])


@pytest.mark.parametrize("name", ["att.keys", "blocks.0.att.keys", "blocks.att.key", "blocks.0.head"])
def test_an_unknown_matrix_is_named(name):
    with pytest.raises(ConfigError, match=f"not of '{name}'"):
        EventConfig(emphasis={name: 1})


def test_a_matrix_that_the_model_has_not_is_named():
    with pytest.raises(ConfigError, match="this model has no matrix blocks.3.att.key"):
        config(emphasis={"blocks.3.att.key": 1})
    with pytest.raises(ConfigError, match="this model has no matrix blocks.0.ffnPre.key"):
        config(emphasis={"blocks.0.ffnPre.key": 1})


def test_an_emphasis_must_be_a_positive_number():
    with pytest.raises(ConfigError, match=r"emphasis of head=0 must be above zero"):
        EventConfig(emphasis={"head": 0})
    with pytest.raises(ConfigError, match="an object of numbers"):
        ModelConfig.from_dict({"spikes": "before", "event": {"emphasis": 3}})


def test_a_config_with_an_emphasis_is_hashed_and_compared():
    one, other = config(emphasis={"head": 2}), config(emphasis={"head": 3})
    assert len({one, config(emphasis={"head": 2})}) == 1 and one != other

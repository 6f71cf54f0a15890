from typing import Any

import pytest

from spikegpt.config import PRESETS, ConfigError, EventConfig, ModelConfig, TrainConfig, preset


def test_configs_survive_plain_values():
    for name in PRESETS:
        config = preset(name, spikes="before", event={"leak": 0.5, "reset": "soft"})
        assert config.event == EventConfig(leak=0.5, reset="soft")
        assert ModelConfig.from_dict(config.to_dict()) == config
    assert TrainConfig.from_dict(TrainConfig(context=64).to_dict()) == TrainConfig(context=64)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"n_layr": 2}, "did you mean 'n_layer'"),
        ({"n_layer": "two"}, "n_layer='two' must be a whole number"),
        ({"n_layer": 1.5}, "must be a whole number"),
        ({"n_embd": True}, "must be a whole number"),
        ({"dropout": None}, "dropout=None must be a number"),
        ({"dropout": 1}, "dropout=1 must be in"),
        ({"tau": float("inf")}, "above zero and finite"),
        ({"tau": float("nan")}, "above zero"),
        ({"spikes": 1}, "must be text"),
        ({"spikes": "sideways"}, "is not one of 'after'"),
        ({"spike_embedding": "yes"}, "must be true or false or null"),
        ({"spikes": "before", "event": 7}, "must be an object or null"),
        ({"spikes": "before", "event": {"levels": "many"}}, "levels='many' must be a whole number"),
        ({"spikes": "before", "event": {"smallest": 16}}, "smallest=16 must be 1"),
        ({"event": {}}, 'event neurons need spikes="before"'),
    ],
)
def test_values_that_cannot_be_are_named(values: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize("values", [{"seed": -1}, {"beta2": 1.0}, {"eval_tokens": 1}, {"warmup": -1}, {"decay": 0.0}])
def test_training_that_cannot_be_is_refused(values: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(values))):
        TrainConfig(**values)

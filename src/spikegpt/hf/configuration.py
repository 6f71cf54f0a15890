"""`ModelConfig` as a configuration of `transformers`."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import PreTrainedConfig

from ..checkpoint import FORMAT
from ..config import ModelConfig

_FIELDS = tuple(field.name for field in dataclasses.fields(ModelConfig))


class SpikeGPTConfig(PreTrainedConfig):
    """The validated fields of `ModelConfig`, besides those of every `transformers` configuration."""

    model_type = "spikegpt"
    attribute_map = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer"}  # noqa: RUF012
    keys_to_ignore_at_inference = ["cache"]  # noqa: RUF012

    def __init__(self, **values: Any) -> None:
        own = {name: values.pop(name) for name in _FIELDS if name in values}
        for name, value in ModelConfig.from_dict(own).to_dict().items():
            setattr(self, name, value)
        self.use_cache = values.pop("use_cache", True)
        super().__init__(**{"format": FORMAT, **values})

    def model_config(self) -> ModelConfig:
        """The `ModelConfig` of the same model."""
        return ModelConfig.from_dict({name: getattr(self, name) for name in _FIELDS})

    def validate_token_ids(self) -> None:
        """As everywhere in `transformers`, but padding may be the id after the last (`tokenizer.special`)."""
        if self.pad_token_id != self.vocab_size:
            super().validate_token_ids()

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: the code saved beside a model is the loader in `hub`, not this package's source."""

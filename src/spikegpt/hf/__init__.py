"""SpikeGPT as `transformers` classes. Importing this module registers them with the Auto classes.

The model is `spikegpt.SpikeGPT` itself, as the module `spikegpt` of each class here, and files keep the published
names: a directory that `spikegpt` saved is loaded by `from_pretrained`, and the other way round.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from .cache import StateCache
from .configuration import SpikeGPTConfig
from .modeling import SpikeGPTForCausalLM, SpikeGPTForSequenceClassification, SpikeGPTModel
from .tokenization import SpikeGPTTokenizer
from .training import AdaptThresholds

__all__ = [
    "AdaptThresholds",
    "SpikeGPTConfig",
    "SpikeGPTForCausalLM",
    "SpikeGPTForSequenceClassification",
    "SpikeGPTModel",
    "SpikeGPTTokenizer",
    "StateCache",
]

AutoConfig.register("spikegpt", SpikeGPTConfig)
AutoTokenizer.register(SpikeGPTConfig, fast_tokenizer_class=SpikeGPTTokenizer)
AutoModel.register(SpikeGPTConfig, SpikeGPTModel)
AutoModelForCausalLM.register(SpikeGPTConfig, SpikeGPTForCausalLM)
AutoModelForSequenceClassification.register(SpikeGPTConfig, SpikeGPTForSequenceClassification)

"""A small model for tests."""

import torch

from spikegpt.config import ModelConfig
from spikegpt.model.layers import Linear
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer

SPIKES = ("after", "none", "before")


def make_model(spikes="after", tokenizer=None, seed=0):
    """A small model whose every weight matters: the initialisation leaves many at zero."""
    tokenizer = tokenizer or ByteTokenizer()
    config = ModelConfig(vocab_size=tokenizer.vocab_size, n_layer=2, n_embd=32, spikes=spikes)
    generator = torch.Generator().manual_seed(seed)
    model = SpikeGPT(config, backend="reference")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 / parameter.shape[1] ** 0.5)
    model.tokenizer = tokenizer
    return model.eval()


def awake(config: ModelConfig, threshold: float = 0.7) -> SpikeGPT:
    """A model whose every weight matters, the initialisation leaves many at zero, and whose neurons fire now and then."""
    torch.manual_seed(0)
    model = SpikeGPT(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Linear):
                module.weight.normal_(0, module.in_features**-0.5)
        model.emb.weight.normal_()
    for neuron in model.event_neurons():
        neuron.threshold.fill_(threshold)
        neuron.unit.fill_(0.2 if neuron.config.levels > 1 else 1.0)
    model.tokenizer = ByteTokenizer() if config.vocab_size >= 256 else None
    return model.eval()

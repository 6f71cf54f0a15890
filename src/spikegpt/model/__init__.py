"""The model: configuration in, spikes and logits out. One class trains, prefills and decodes."""

from .meter import LayerActivity, SpikeMeter
from .spikegpt import Block, SpikeGPT
from .state import BlockState, MixState, State

__all__ = ["Block", "BlockState", "LayerActivity", "MixState", "SpikeGPT", "SpikeMeter", "State"]

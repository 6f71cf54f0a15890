"""The function that the published generation script computes, which differs from the one that is trained.

For comparisons with numbers that came from that script; `docs/parity.md` measures the difference.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..model.spikegpt import Block, SpikeGPT
from ..model.state import BlockState

SPIKING_VOCABULARY = 77
"""The script makes the embedding binary for a vocabulary of this size only (its BookCorpus model's)."""
RESCALE_EVERY = 6
"""Layers after which the script halves the residual: harmless in RWKV, but a LIF neuron's threshold does not halve."""


def reference_generation(model: SpikeGPT) -> SpikeGPT:
    """A copy of a SpikeGPT that computes what the reference's script generates with, in float32.

    UsageError for a model that is no SpikeGPT as published, and for RWKV-ffnPre, on which the script stops.
    """
    if model.config.spikes != "after":
        raise UsageError('only models with spikes="after" can be compared with the reference\'s generation')
    if model.config.architecture == "RWKV-ffnPre":
        raise UsageError("the reference's generation stops on an RWKV-ffnPre model: it looks for att in block 0")
    model = rescaled(model)
    return model if model.config.vocab_size == SPIKING_VOCABULARY else without_spike_embedding(model)


def without_spike_embedding(model: SpikeGPT) -> SpikeGPT:
    """A copy whose embedding is not made binary."""
    model = _copy(model)
    model.emb_spike = None
    model.config = dataclasses.replace(model.config, spike_embedding=False)
    return model


def rescaled(model: SpikeGPT) -> SpikeGPT:
    """A copy that halves its residual after every 6th layer, and scales what later layers add to it accordingly."""
    model = _copy(model)
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        with torch.no_grad():
            for matrix in (getattr(block, block.att_name).output if block.att_name == "att" else None, block.ffn.value):
                if matrix is not None:
                    matrix.weight /= 2 ** (index // RESCALE_EVERY)
        if (index + 1) % RESCALE_EVERY == 0:
            block.register_forward_hook(_halve)
    return model


def _halve(block: nn.Module, inputs: Any, output: tuple[Tensor, BlockState]) -> tuple[Tensor, BlockState]:
    return output[0] / 2, output[1]


def _copy(model: SpikeGPT) -> SpikeGPT:
    return copy.deepcopy(model, {id(model.tokenizer): model.tokenizer})

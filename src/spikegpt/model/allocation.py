"""Where an event-driven model spends its activity: more where silence costs most, less where a matrix is large.

`event.emphasis` says how much more often the neurons in front of one kind of matrix fire than those in front of another.
The default was measured (docs/experiments.md): inputs of a trained continuous model were silenced at one kind of matrix
after the other, and the shares chosen so that one more weight read helps about as much everywhere.
"""

from __future__ import annotations

from ..config import EMPHASIS, ModelConfig


def weights(config: ModelConfig) -> dict[str, int]:
    """Weights of all matrices of each kind."""
    channels, layers = config.n_embd, config.n_layer
    time_mixes = layers - (config.architecture == "RWKV-ffnPre")
    channel_mixes = 2 * layers - time_mixes
    square, wide = channels**2, channels * config.hidden
    return {
        **dict.fromkeys(("att.key", "att.value", "att.receptance", "att.output"), time_mixes * square),
        "ffn.key": channel_mixes * wide,
        "ffn.receptance": channel_mixes * square,
        "ffn.value": channel_mixes * wide,
        "head": channels * config.vocab_size,
    }


def allocate(config: ModelConfig, activity: float) -> dict[str, float]:
    """Share of neurons that fire in front of each kind of matrix, so that `activity` of all weights are read per token.

    The shares are in the ratio of `config.event.emphasis`, except that none is above 1.
    """
    assert config.event is not None
    sizes = weights(config)
    wanted = activity * sum(sizes.values())
    emphasis = EMPHASIS if config.event.emphasis is None else dict.fromkeys(sizes, 1.0) | config.event.emphasis
    shares = dict.fromkeys(sizes, 1.0)
    rest = set(sizes)
    while rest:
        scale = (wanted - sum(sizes[kind] for kind in sizes if kind not in rest)) / sum(
            sizes[kind] * emphasis[kind] for kind in rest
        )
        full = {kind for kind in rest if scale * emphasis[kind] >= 1}
        if not full:
            return shares | {kind: scale * emphasis[kind] for kind in rest}
        rest -= full
    return shares

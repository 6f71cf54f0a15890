"""Where an event-driven model spends its activity: more where silence costs most, less where a matrix is large.

`event.emphasis` says how much more often the neurons in front of one matrix, or of one kind of matrix, fire than those in
front of another. The default was measured (docs/experiments.md): inputs of a trained continuous model were silenced at one
kind of matrix after the other, and the shares chosen so that one more weight read helps about as much everywhere.
"""

from __future__ import annotations

from ..config import EMPHASIS, ModelConfig


def weights(config: ModelConfig) -> dict[str, int]:
    """Weights of every matrix by its name in the model: `blocks.0.att.key`, ..., `head`."""
    square, wide = config.n_embd**2, config.n_embd * config.hidden
    time_mix = dict.fromkeys(("key", "value", "receptance", "output"), square)
    channel_mix = {"key": wide, "receptance": square, "value": wide}
    sizes: dict[str, int] = {}
    for layer in range(config.n_layer):
        first = ("ffnPre", channel_mix) if layer == 0 and config.architecture == "RWKV-ffnPre" else ("att", time_mix)
        for mix, matrices in (first, ("ffn", channel_mix)):
            sizes |= {f"blocks.{layer}.{mix}.{name}": size for name, size in matrices.items()}
    return sizes | {"head": config.n_embd * config.vocab_size}


def kind_of(matrix: str) -> str:
    """The kind of a matrix, a key of `EMPHASIS`: `att.key` for `blocks.0.att.key`, `ffn.key` for `blocks.0.ffnPre.key`."""
    return matrix if matrix == "head" else matrix.split(".", 2)[2].replace("ffnPre", "ffn")


def emphasis_of(config: ModelConfig) -> dict[str, float]:
    """How often the neurons in front of each matrix fire relative to the others: its own number, its kind's, or 1."""
    assert config.event is not None
    given = EMPHASIS if config.event.emphasis is None else config.event.emphasis
    return {matrix: given.get(matrix, given.get(kind_of(matrix), 1.0)) for matrix in weights(config)}


def allocate(config: ModelConfig, activity: float) -> dict[str, float]:
    """Share of neurons that fire in front of each matrix, so that `activity` of all weights are read per token.

    The shares are in the ratio of `emphasis_of`, except that none is above 1.
    """
    sizes, emphasis = weights(config), emphasis_of(config)
    wanted = activity * sum(sizes.values())
    shares = dict.fromkeys(sizes, 1.0)
    rest = set(sizes)
    while rest:
        scale = (wanted - sum(sizes[matrix] for matrix in sizes if matrix not in rest)) / sum(
            sizes[matrix] * emphasis[matrix] for matrix in rest
        )
        full = {matrix for matrix in rest if scale * emphasis[matrix] >= 1}
        if not full:
            return shares | {matrix: scale * emphasis[matrix] for matrix in rest}
        rest -= full
    return shares

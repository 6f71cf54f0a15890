"""Where an event-driven model spends its activity: more where silence costs most, less where a matrix is large.

`event.emphasis` says how much more often the neurons in front of one matrix, or of one kind of matrix, fire than those in
front of another, so that one more weight read helps about as much everywhere. `FIRST_EMPHASIS` was measured on a continuous
model whose inputs were silenced at one kind of matrix after the other; the default was moved from there by what the smallest
events of a trained event-driven model are worth (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..config import FIRST_EMPHASIS, ModelConfig
from .neurons import EventNeuron
from .sites import sites, sites_by_neuron


def emphasis_of(config: ModelConfig) -> dict[str, float]:
    """How often the neurons in front of each matrix fire relative to the others: its own number, its kind's, or 1."""
    assert config.event is not None
    given = FIRST_EMPHASIS if config.event.emphasis is None else config.event.emphasis
    return {site.name: given.get(site.name, given.get(site.kind, 1.0)) for site in sites(config)}


def allocate(config: ModelConfig, activity: float) -> dict[str, float]:
    """Fraction of neurons that fire in front of each matrix, so that `activity` of all weights are read per token.

    The shares are in the ratio of `emphasis_of`, except that none is above 1.
    """
    sizes, emphasis = {site.name: site.weights for site in sites(config)}, emphasis_of(config)
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


def aim(config: ModelConfig, neurons: Mapping[str, EventNeuron]) -> None:
    """Tell neurons, by their modules' names in a model of this shape, their part of its activity: at first and at last."""
    event = config.event
    assert event is not None
    shares, at_first = (allocate(config, each) for each in (event.activity, event.start_activity or event.activity))
    of = sites_by_neuron(config)
    for name, neuron in neurons.items():
        neuron.aim_for(shares[of[name].name], at_first[of[name].name])

"""Every weight matrix of a model in one table: its name, size and the neuron in front of it.

Whatever has to know which matrices there are (neurons, allocation, counting, pictures, the integer engine, exports)
reads this table. A new family of models supplies one such function.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ModelConfig

TIME_MIX = ("key", "value", "receptance", "output")
"""Matrices of a time mix, in the order they run."""
SHARED_TIME_MIX = ("input", "output")
"""The same where key, value and receptance read the same events: they are the rows of `input`, in this order."""
CHANNEL_MIX = ("key", "receptance", "value")
"""Matrices of a channel mix, in the order they run."""
HEAD_NEURON = "head_neuron"
LIF_NEURONS = ("lif1", "lif2")
"""Neurons behind the two mixes of a block where `spikes="after"`."""


@dataclass(frozen=True)
class Site:
    """One weight matrix of shape [outputs, inputs]."""

    name: str
    """Name of the module, as in the published checkpoints: `blocks.0.att.key`, `head`."""
    kind: str
    """What it does, one of the keys of `config.EMPHASIS`: `att.key`, `ffn.value`, `head`; a `ffnPre` is a `ffn`."""
    inputs: int
    outputs: int
    signed: bool
    """Whether its input can be negative; relu^2's output cannot."""
    neuron: str | None
    """Name of the event neuron's module: `blocks.0.att.neurons.key`, `head_neuron`; None where it reads floats."""
    block: int | None
    """Index of its block; None for the head."""

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.inputs * self.outputs

    @property
    def mix(self) -> str | None:
        """Name of the mix that it belongs to: `blocks.0.att`; None for the head."""
        return None if self.block is None else self.name.rpartition(".")[0]

    @property
    def matrix(self) -> str:
        """Its name within its mix: `key`, `value`, ...; `head`."""
        return self.name.rpartition(".")[2]


def first_mix(config: ModelConfig, block: int) -> str:
    """Name of a block's first half: `att`, or `ffnPre` (a channel mix) in block 0 of RWKV-ffnPre."""
    return "ffnPre" if block == 0 and config.architecture == "RWKV-ffnPre" else "att"


def matrices_of(config: ModelConfig, mix: str) -> tuple[str, ...]:
    """The matrices of an `att`, `ffn` or `ffnPre` of such a model, in the order they run."""
    if mix != "att":
        return CHANNEL_MIX
    return SHARED_TIME_MIX if config.event and config.event.shared else TIME_MIX


def sites(config: ModelConfig) -> tuple[Site, ...]:
    """All matrices of a model of this shape, in the order they run."""
    found: list[Site] = []
    for block in range(config.n_layer):
        for mix in (first_mix(config, block), "ffn"):
            found += _mix_sites(config, block, mix)
    neuron = HEAD_NEURON if config.event else None
    return (*found, Site("head", "head", config.n_embd, config.outputs, True, neuron, None))


def sites_by_neuron(config: ModelConfig) -> dict[str, Site]:
    """The sites that have an event neuron in front, by its module's name."""
    return {site.neuron: site for site in sites(config) if site.neuron is not None}


@dataclass(frozen=True)
class NeuronGroup:
    """One layer of neurons, as pictures and tables name it."""

    name: str
    """Of the module."""
    block: int | None
    place: str
    """`embedding`, `block 0`, ..., `head`."""
    label: str
    """Which of that place's neurons: `att key`, `lif1`; empty where there is one."""


def neuron_groups(config: ModelConfig) -> tuple[NeuronGroup, ...]:
    """All layers of neurons of a model of this shape, in the order they fire."""
    groups = [NeuronGroup("emb_spike", None, "embedding", "")] if config.spike_embedding else []
    if config.spikes == "after":
        for block in range(config.n_layer):
            groups += [NeuronGroup(f"blocks.{block}.{lif}", block, f"block {block}", lif) for lif in LIF_NEURONS]
    for name, site in sites_by_neuron(config).items():
        if site.block is None:
            groups.append(NeuronGroup(name, None, "head", ""))
        else:
            mix = site.name.split(".")[2]
            groups.append(NeuronGroup(name, site.block, f"block {site.block}", f"{mix} {site.matrix}"))
    return tuple(groups)


def _mix_sites(config: ModelConfig, block: int, mix: str) -> list[Site]:
    channels, hidden = config.n_embd, config.hidden
    is_time = mix == "att"
    found = []
    widths = {"input": 3 * channels, "key": channels if is_time else hidden}
    for matrix in matrices_of(config, mix):
        reads_hidden = not is_time and matrix == "value"
        found.append(
            Site(
                name=f"blocks.{block}.{mix}.{matrix}",
                kind=f"{'att' if is_time else 'ffn'}.{matrix}",
                inputs=hidden if reads_hidden else channels,
                outputs=widths.get(matrix, channels),
                signed=not reads_hidden,
                neuron=f"blocks.{block}.{mix}.neurons.{matrix}" if config.event else None,
                block=block,
            )
        )
    return found

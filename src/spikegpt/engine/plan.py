"""What the C++ engine is built from: the table of matrices, the mixes that use them, and arrays in the form it reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..config import ModelConfig
from ..model.sites import HEAD_NEURON, Site, first_mix, matrices_of, sites
from .integers import IntegerModel
from .state_layout import Layout
from .steps import split


@dataclass(frozen=True)
class Mix:
    """A time mix or a channel mix."""

    name: str
    """`blocks.0.att`, `blocks.0.ffnPre`, `blocks.0.ffn`."""
    place: str
    """Where the state keeps what it remembers: `blocks.0.att` (of a `ffnPre` too), `blocks.0.ffn`."""
    norm: str
    """Name of the norm in front of it."""


def mixes(config: ModelConfig) -> list[Mix]:
    """The mixes of a model in the order they run, two a block."""
    return [
        Mix(f"blocks.{block}.{name}", f"blocks.{block}.{place}", f"blocks.{block}.{norm}")
        for block in range(config.n_layer)
        for name, place, norm in ((first_mix(config, block), "att", "ln1"), ("ffn", "ffn", "ln2"))
    ]


def site_plans(config: ModelConfig, layout: Layout) -> list[dict[str, object]]:
    """Fields of the engine's `Site` of every matrix, in the order they run."""
    assert config.event is not None
    places = {mix.name: mix.place for mix in mixes(config)}

    def membrane(site: Site) -> int:
        name = HEAD_NEURON if site.mix is None else f"{places[site.mix]}.neurons.{site.matrix}"
        return layout.offsets.get(name, -1)

    return [
        {
            "matrix": site.name,
            "neuron": site.neuron,
            "inputs": site.inputs,
            "outputs": site.outputs,
            "is_signed": config.event.signed and site.signed,
            "membrane": membrane(site),
            "runs": 3 if site.kind == "att.input" else 1,
        }
        for site in sites(config)
    ]


def mix_plans(config: ModelConfig, layout: Layout) -> list[dict[str, object]]:
    """Fields of the engine's `Mix` of every mix: its matrices are indices into the table."""
    index = {site.name: number for number, site in enumerate(sites(config))}
    plans = []
    for mix in mixes(config):
        plan = {"name": mix.name, "norm": mix.norm, "shift": layout.offsets[f"{mix.place}.shift"]}
        plan |= {matrix: index[f"{mix.name}.{matrix}"] for matrix in matrices_of(config, mix.name.rpartition(".")[2])}
        if "output" in plan:  # a time mix
            plan["wkv"] = layout.offsets[f"{mix.place}.wkv"]
        plans.append(plan)
    return plans


def prepared(packed: IntegerModel) -> dict[str, np.ndarray]:
    """The arrays as the float engine wants them: vectors flat, decay and leak computed as the float model does, scales of
    several groups of inputs as `<matrix>.scale` [1, outputs] and `<matrix>.steps` [groups, outputs]; no look-up lane."""
    event = packed.config.event
    assert event is not None
    inputs = {site.name: site.inputs for site in sites(packed.config)}
    arrays: dict[str, np.ndarray] = {}
    for name, array in packed.arrays.items():
        stem = name.rpartition(".")[0]
        if stem == "lookup":
            continue
        if name.endswith(".time_decay"):
            arrays[f"{stem}.decay"] = (-torch.exp(torch.from_numpy(array))).numpy()
        elif name.endswith(".time_first"):
            arrays[f"{stem}.first"] = array
        elif name.endswith(".leak_logit"):
            arrays[f"{stem}.leak"] = torch.sigmoid(torch.from_numpy(array)).numpy()
        elif stem in inputs and name.endswith(".scale") and len(array) > 1:
            arrays[name], arrays[f"{stem}.steps"] = split(array, inputs[stem], event.levels)
        elif array.dtype == np.float32 and ".time_mix_" in name:
            arrays[name] = array.reshape(-1)
        else:
            arrays[name] = array
    return arrays

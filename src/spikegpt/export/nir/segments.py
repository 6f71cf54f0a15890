"""Which chains a model falls into, and what its host computes between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...config import ModelConfig
from ...engine.integers import IntegerModel, unhalve
from ...errors import UsageError
from ...model.sites import Site, first_mix, sites
from ...model.spikegpt import SpikeGPT
from .nodes import DT, affine, chain, event_bounds, just_below, lif, square_bounds

BEFORE = {
    "att.key": "x -> ln1 -> h; h' + time_mix_k (h - h') with h' of the token before",
    "att.value": "the same h; h' + time_mix_v (h - h')",
    "att.receptance": "the same h; h' + time_mix_r (h - h')",
    "att.output": "sigmoid(r) x WKV(k, v), state of the average in float32",
    "ffn.key": "x -> ln2 -> h; h' + time_mix_k (h - h') with h' of the token before",
    "ffn.receptance": "the same h; h' + time_mix_r (h - h')",
    "head": "x -> ln_out",
}
AFTER = {
    "att.output": "x += sums x scale",
    "ffn.key": "x += sigmoid(r) x sums x scale",
    "head": "logits = sums x scale",
}


@dataclass
class Segment:
    """One chain, one input, one output: what every simulator can read."""

    name: str
    graph: Any = field(repr=False)
    before: str
    """What the host computes to make its input."""
    after: str
    """What the host does with its output."""
    matrices: tuple[str, ...]
    """The matrices inside, in order."""
    scale: np.ndarray | None = field(default=None, repr=False)
    """[outputs] float32 that the host multiplies the integer sums with; None where spikes come out."""


def check_exportable(config: ModelConfig, bits: int) -> None:
    """UsageError for what NIR cannot express."""
    if config.spikes == "none":
        raise UsageError('this model has spikes="none": there are no neurons to export')
    if config.event is not None and config.event.has_membrane:
        kind = "a soft reset" if config.event.reset == "soft" else "a leak"
        raise UsageError(f"NIR has no graded spikes, so {kind} behind them cannot be expressed; only event.leak=0 can")
    if bits != 8:
        raise UsageError(
            "weights of 4 bits have several scales for an output, which one sum cannot have; pack to 8 bits"
        )


def lif_segments(model: SpikeGPT, dialect: str) -> Iterator[Segment]:
    """Of SpikeGPT as published: `lif1` behind its matrix; `lif2` (and ffnPre's `lif1`) alone, behind the host's gate."""
    config = model.config
    about = {"dialect": dialect, "dt": str(DT), "unit": "a token is a step"}
    for block in range(config.n_layer):
        for neuron, mix in (("lif1", first_mix(config, block)), ("lif2", "ffn")):
            name = f"blocks.{block}.{neuron}"
            nodes = {"lif": lif(config.n_embd, config.tau, just_below(config.threshold), dialect)}
            matrices: tuple[str, ...] = ()
            before = "norm, token shift, key, receptance, relu^2, value, gate: all matrices read floats"
            if mix == "att":
                matrices = (f"blocks.{block}.att.output",)
                nodes = {"matrix": affine(model.get_parameter(f"{matrices[0]}.weight").detach().numpy())} | nodes
                before = "norm, token shift, key, value, receptance, WKV, gate: all three matrices read floats"
            yield Segment(name, chain(nodes, about), before, "x += spikes", matrices)


def event_segments(packed: IntegerModel, dialect: str, *, uniform: bool) -> Iterator[Segment]:
    """Of an event-driven model: each matrix behind its neurons; `ffn.key` and `ffn.value` in one, without a host between."""
    table = {site.name: site for site in sites(packed.config)}
    for name, site in table.items():
        if site.kind == "ffn.value":
            continue
        nodes = _neurons(packed, site, dialect, uniform) | {"matrix": affine(weights(packed, name).T)}
        inside = (name,)
        if site.kind == "ffn.key":
            value = table[name.removesuffix("key") + "value"]
            nodes |= _hidden_neurons(packed, site, value, dialect, uniform)
            nodes["matrix2"] = affine(weights(packed, value.name).T)
            inside = (name, value.name)
        about = {"dialect": dialect, "dt": str(DT), "unit": "a token is a step", "uniform": str(uniform)}
        yield Segment(
            name, chain(nodes, about), BEFORE[site.kind], AFTER.get(site.kind, "sums x scale"), inside,
            output_scale(packed, inside[-1]),
        )  # fmt: skip


def weights(packed: IntegerModel, matrix: str) -> np.ndarray:
    """[inputs, outputs] integers."""
    array = packed.arrays[f"{matrix}.weight"]
    return array if packed.bits == 8 else unhalve(array, packed.arrays[f"{matrix}.scale"].shape[1])


def output_scale(packed: IntegerModel, matrix: str) -> np.ndarray:
    """[outputs] float32: what an integer sum stands for, as the engine multiplies."""
    unit = packed.arrays[f"{_neuron(packed, matrix)}.unit"]
    return (packed.arrays[f"{matrix}.scale"][0] * unit).astype(np.float32)


def _neuron(packed: IntegerModel, matrix: str) -> str:
    neuron = next(site.neuron for site in sites(packed.config) if site.name == matrix)
    assert neuron is not None
    return neuron


def _neurons(packed: IntegerModel, site: Site, dialect: str, uniform: bool) -> dict[str, Any]:
    """A graded neuron as the count of its thresholds: fan out, binary neurons without memory, the event."""
    event = packed.config.event
    assert event is not None
    threshold, unit = (float(packed.arrays[f"{site.neuron}.{what}"][0]) for what in ("threshold", "unit"))
    bounds = event_bounds(threshold, unit, event.levels, event.smallest)
    signs = (1.0, -1.0) if site.signed and event.signed else (1.0,)
    return _thermometer("", np.tile(bounds[:, None], (1, site.inputs)), signs, dialect, uniform)


def _hidden_neurons(packed: IntegerModel, key: Site, value: Site, dialect: str, uniform: bool) -> dict[str, Any]:
    """The neurons behind relu^2 read the key's integer sums: a threshold for each channel and size."""
    event = packed.config.event
    assert event is not None
    threshold, unit = (float(packed.arrays[f"{value.neuron}.{what}"][0]) for what in ("threshold", "unit"))
    most = int(event.levels * np.abs(weights(packed, key.name).astype(np.int64)).sum(0).max())
    scale = output_scale(packed, key.name)
    bounds = square_bounds(scale, threshold, unit, event.levels, event.smallest, most)
    return _thermometer("2", bounds, (1.0,), dialect, uniform)


def _thermometer(
    suffix: str, bounds: np.ndarray, signs: tuple[float, ...], dialect: str, uniform: bool
) -> dict[str, Any]:
    """bounds [levels, n]. `uniform`: one threshold for all and inputs scaled instead, so a division more."""
    levels, width = bounds.shape
    identity = np.eye(width, dtype=np.float32)
    fan = np.concatenate([sign * identity for sign in signs for _ in range(levels)])
    gather = np.concatenate([sign * identity for sign in signs for _ in range(levels)], axis=1)
    bound = np.tile(bounds.reshape(-1), len(signs))
    if uniform:
        fan, bound = (fan / bound[:, None]).astype(np.float32), np.ones(len(fan))
    return {
        f"fan{suffix}": affine(fan),
        f"units{suffix}": lif(len(fan), 1.0, bound, dialect),
        f"event{suffix}": affine(gather),
    }

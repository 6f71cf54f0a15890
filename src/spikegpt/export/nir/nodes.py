"""NIR's primitives as SpikeGPT's neurons use them. A token is a step of `DT` seconds.

NIR's LIF is tau dv/dt = -v + r x, a spike where v > v_threshold, then v = 0. How a simulator takes a step of it differs:
the dialects of `DIALECTS`.
"""

from __future__ import annotations

import importlib
import math
from itertools import pairwise
from typing import Any

import numpy as np

from ...errors import UserError

DT = 1e-4
"""Seconds in a step; snnTorch takes this one, whatever a graph says."""
DIALECTS = {
    "euler": "v += dt / tau (x - v): the specification, norse, snntorch, spikingjelly",
    "unit": "v += dt / tau (r x - v) with r = tau / dt, and a threshold as many times higher: snn-mlir, snntorch, spikingjelly",
    "exp": "v = exp(-1 / tau) v + x, tau in steps: sinabs",
}


def nir_package() -> Any:
    """The package `nir`, or a UserError that says how to get it."""
    try:
        return importlib.import_module("nir")
    except ImportError as error:
        raise UserError(f"NIR files need the package nir ({error}); pip install 'spikegpt[nir]'") from None


def lif(width: int, tau: float, thresholds: np.ndarray | float, dialect: str) -> Any:
    """`width` neurons that leak by 1/tau of a token and read their input times 1/tau; tau = 1 is no memory."""
    gain = 1.0 if dialect == "euler" else tau
    time = tau * DT
    if dialect == "exp":
        time = -1 / math.log(1 - 1 / tau) if tau > 1 else 1e-3  # exp(-1000) is 0 in float32
    full = np.full(width, 1.0)
    return nir_package().LIF(
        tau=full * time, r=full * gain, v_leak=full * 0, v_threshold=full * thresholds * gain, v_reset=full * 0
    )


def just_below(value: float) -> float:
    """The next smaller float32: above it is at or above `value`."""
    return float(np.nextafter(np.float32(value), np.float32(-np.inf)))


def affine(weight: np.ndarray) -> Any:
    """A matrix [outputs, inputs] without bias: of the linear primitives the one that most simulators read."""
    weight = np.ascontiguousarray(weight, np.float32)
    return nir_package().Affine(weight=weight, bias=np.zeros(len(weight), np.float32))


def chain(nodes: dict[str, Any], about: dict[str, str]) -> Any:
    """Input -> nodes -> Output."""
    nir = nir_package()
    first, last = next(iter(nodes.values())), list(nodes.values())[-1]
    named = {"input": nir.Input(input_type={"input": first.input_type["input"]})} | nodes
    named["output"] = nir.Output(output_type={"output": np.array(last.output_type["output"])})
    graph = nir.NIRGraph(nodes=named, edges=list(pairwise(named)))
    graph.metadata = dict(about)
    return graph


def chain_of(graph: Any) -> dict[str, Any]:
    """The nodes of a chain between its input and its output."""
    after, at, found = dict(graph.edges), "input", {}
    while (at := after[at]) != "output":
        found[at] = graph.nodes[at]
    return found


def event_bounds(threshold: float, unit: float, levels: int, smallest: int) -> np.ndarray:
    """[levels] the largest float32 that is still below an event of each size, by the engine's own float32 arithmetic."""
    found = []
    for level in range(1, levels + 1):
        low = max(np.float32(threshold + (level - 1.5) * unit), np.float32(0))
        high = np.float32(threshold + (level + 0.5) * unit)
        a, b = int(np.float32(low).view(np.int32)), int(high.view(np.int32))
        while b - a > 1:  # positive floats are ordered as their bits
            middle = (a + b) // 2
            size = np.array([middle], np.int32).view(np.float32)
            if _event(size, threshold, unit, levels)[0] >= level:
                b = middle
            else:
                a = middle
        found.append(np.array([a], np.int32).view(np.float32)[0])
    return _jump(np.array(found, np.float64), smallest)


def square_bounds(
    scale: np.ndarray, threshold: float, unit: float, levels: int, smallest: int, most: int
) -> np.ndarray:
    """[levels, n] half-integers that an integer sum must be above, so that relu(sum x scale)^2 is an event of each size.

    `scale` [n] float32 as the engine multiplies with it; `most` is the largest possible sum. Sums that never get there have
    the bound `most` + 1/2.
    """
    low, high = np.zeros((levels, len(scale)), np.int64), np.full((levels, len(scale)), most + 1, np.int64)
    wanted = np.arange(1, levels + 1)[:, None]
    while (high - low > 1).any():  # low is below the event, high at it
        middle = (low + high) // 2
        current = middle.astype(np.float32) * scale
        reached = _event(current * current, threshold, unit, levels) >= wanted
        high, low = np.where(reached, middle, high), np.where(reached, low, middle)
    return _jump(high - 0.5, smallest)


def _event(size: np.ndarray, threshold: float, unit: float, levels: int) -> np.ndarray:
    over = np.maximum(size - np.float32(threshold), np.float32(0)) / np.float32(unit)
    return np.minimum(np.ceil(over), levels)


def _jump(bounds: np.ndarray, smallest: int) -> np.ndarray:
    """Events below `smallest` are not sent: the first bounds are the same."""
    bounds[: smallest - 1] = bounds[smallest - 1]
    return bounds

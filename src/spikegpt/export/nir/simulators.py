"""How each simulator runs one NIR chain: importer, quirks, a step at a time."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import UsageError, UserError
from .nodes import chain_of

Runner = Callable[[Any, np.ndarray, float], np.ndarray]
"""(graph, inputs [T, n], dt) -> outputs [T, m]"""


def simulate(name: str, graph: Any, inputs: np.ndarray, dt: float) -> np.ndarray:
    """Run a chain over inputs [T, n] in the simulator `name`; UserError where it is not installed or refuses the graph."""
    if name not in SIMULATORS:
        raise UsageError(f"no simulator {name!r}; there are {', '.join(SIMULATORS)}")
    run, module, pip = SIMULATORS[name]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{name} is not installed ({error}); {pip}") from None
    try:
        return run(graph, np.asarray(inputs, np.float32), dt)
    except ImportError as error:
        raise UserError(f"{name} reads NIR by way of a package that is not installed ({error})") from None
    except (ValueError, NotImplementedError, AssertionError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{name} does not take this graph: {' '.join(str(error).split())[:200]}") from None


def _reference(graph: Any, x: np.ndarray, dt: float) -> np.ndarray:
    """The specification: forward Euler in float32, a spike above the threshold, reset to 0."""
    for node in chain_of(graph).values():
        if type(node).__name__ == "Affine":
            x = x @ node.weight.T.astype(np.float32) + node.bias.astype(np.float32)
            continue
        rate, r, threshold = (
            (dt / node.tau).astype(np.float32),
            node.r.astype(np.float32),
            node.v_threshold.astype(np.float32),
        )
        v, spikes = np.zeros(x.shape[1], np.float32), []
        for current in x:
            v = v + rate * (r * current - v)
            fired = v > threshold
            v = np.where(fired, np.float32(0), v)
            spikes.append(fired)
        x = np.stack(spikes).astype(np.float32)
    return x


def _stepwise(module: Any, x: np.ndarray) -> np.ndarray:
    import torch

    found, state = [], None
    with torch.inference_mode():
        for current in torch.from_numpy(x):
            y, state = module(current[None], state)
            found.append(y[0].numpy())
    return np.stack(found)


def _norse(graph: Any, x: np.ndarray, dt: float) -> np.ndarray:
    norse = importlib.import_module("norse.torch")
    return _stepwise(norse.from_nir(graph, dt=dt), x)


def _snntorch(graph: Any, x: np.ndarray, dt: float) -> np.ndarray:
    for name, node in chain_of(graph).items():
        if type(node).__name__ == "LIF" and len(np.unique(node.v_threshold)) > 1:
            raise UserError(f"snntorch knows one threshold a node, {name} has several; export with --uniform")
    with contextlib.redirect_stdout(io.StringIO()):
        module = importlib.import_module("snntorch.import_nir").import_from_nir(graph)
    return _stepwise(module, x)


def _spikingjelly(graph: Any, x: np.ndarray, dt: float) -> np.ndarray:
    exchange = importlib.import_module("spikingjelly.activation_based.nir_exchange")
    return _stepwise(exchange.import_from_nir(graph, dt=dt), x)


def _sinabs(graph: Any, x: np.ndarray, dt: float) -> np.ndarray:
    """Its importer gives a soft reset and several spikes a step; both are set right. Time is in steps."""
    import torch

    layers, activation = importlib.import_module("sinabs.layers"), importlib.import_module("sinabs.activation")
    module = importlib.import_module("sinabs.nir").from_nir(graph, batch_size=1)
    for layer in module.modules():
        if isinstance(layer, layers.LIFSqueeze):
            layer.reset_fn, layer.spike_fn = activation.MembraneReset(), activation.SingleSpike
    with torch.inference_mode():
        y = module(torch.from_numpy(x))
    return (y[0] if isinstance(y, tuple) else y).numpy()


_CPU = "with PyTorch's CPU build kept: pip install -c constraints.txt"
SIMULATORS: dict[str, tuple[Runner, str, str]] = {
    "reference": (_reference, "numpy", ""),
    "norse": (_norse, "norse", f"{_CPU} norse"),
    "snntorch": (_snntorch, "snntorch", f"{_CPU} snntorch"),
    "spikingjelly": (_spikingjelly, "spikingjelly", "pip install --no-deps spikingjelly"),
    "sinabs": (_sinabs, "sinabs", "pip install --no-deps sinabs; pip install pbr"),
}

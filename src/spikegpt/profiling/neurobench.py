"""NeuroBench's own harness on a SpikeGPT: model, hooks, data set and a metric for language (NeuroBench 2.3).

`pip install --no-deps neurobench`, and snntorch, which it imports. Nothing else imports this module.
"""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from ..evaluation import evaluating
from ..model.neurons import Neuron
from ..model.spikegpt import SpikeGPT

try:
    from neurobench.benchmarks import Benchmark  # pyright: ignore[reportMissingImports]
    from neurobench.hooks.layer import LayerHook  # pyright: ignore[reportMissingImports]
    from neurobench.hooks.neuron import NeuronHook  # pyright: ignore[reportMissingImports]
    from neurobench.metrics.abstract.workload_metric import AccumulatedMetric  # pyright: ignore[reportMissingImports]
    from neurobench.metrics.static import ConnectionSparsity, Footprint  # pyright: ignore[reportMissingImports]
    from neurobench.metrics.workload import (  # pyright: ignore[reportMissingImports]
        ActivationSparsity,
        MembraneUpdates,
        SynapticOperations,
    )
    from neurobench.models import NeuroBenchModel  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(
        f"NeuroBench cannot be imported ({error}); pip install -c constraints.txt snntorch && "
        "pip install --no-deps neurobench"
    ) from None


class Chunks(Dataset[tuple[Tensor, Tensor]]):
    """ids [N] as (tokens, next tokens) of `chunk` each, in order: to be read with the state carried."""

    def __init__(self, ids: np.ndarray, chunk: int) -> None:
        count = (len(ids) - 1) // chunk
        if count < 1:
            raise UserError(f"{len(ids)} tokens are too few for one chunk of {chunk} and the token after it")
        tokens = torch.from_numpy(np.asarray(ids, np.int64))
        self.inputs = tokens[: count * chunk].view(count, chunk)
        self.targets = tokens[1 : count * chunk + 1].view(count, chunk)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


class MatrixHook(LayerHook):
    """The matrix's input alone: an event-driven one is called with its neuron's unit beside it."""

    def hook_fn(self, module: Any, input: tuple[Tensor, ...]) -> None:
        self.inputs.append(input[:1])


class SpikeHook(NeuronHook):
    """A neuron returns (spikes, membrane)."""

    def pre_hook_fn(self, layer: Any, input: tuple[Tensor | None, ...]) -> None:
        if getattr(layer, "has_membrane", False) and len(input) > 1 and input[1] is not None:
            self.pre_fire_mem_potential.append(input[1].detach())

    def hook_fn(self, layer: Any, input: Any, output: tuple[Tensor, Tensor | None]) -> None:
        self.activation_outputs.append(output[0])
        if output[1] is not None:
            self.post_fire_mem_potential.append(output[1].detach())


class SpikeGPTModel(NeuroBenchModel):
    """A SpikeGPT that carries its state from batch to batch; batches of one, in order."""

    def __init__(self, net: SpikeGPT) -> None:
        super().__init__()
        self.net, self.state = net, None
        self.add_activation_module(Neuron)

    def __call__(self, batch: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch.inference_mode():
            logits, self.state = self.net(batch, self.state)
        return logits

    def __net__(self) -> SpikeGPT:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.net

    def register_hooks(self) -> None:
        """Hooks on every neuron and every matrix."""
        for found in self.activation_layers():
            self.activation_hooks.append(SpikeHook(found["layer"], found["layer_name"]))
        for layer in self.connection_layers():
            self.connection_hooks.append(MatrixHook(layer))


class BitsPerToken(AccumulatedMetric):
    """Cross entropy of the next token, in bits."""

    def __init__(self) -> None:
        super().__init__(requires_hooks=False)
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.bits, self.tokens = 0.0, 0

    def __call__(self, model: Any, preds: Tensor, data: tuple[Tensor, Tensor]) -> float:
        self.bits += F.cross_entropy(preds.flatten(0, 1), data[1].flatten(), reduction="sum").item() / math.log(2)
        self.tokens += data[1].numel()
        return self.compute()

    def compute(self) -> float:
        """Bits over tokens."""
        return self.bits / self.tokens


def measure(model: SpikeGPT, ids: np.ndarray, *, chunk: int | None = None) -> dict[str, Any]:
    """Run NeuroBench over ids [N]: its metrics under its names, a token being a sample, as `Profile.neurobench` gives them.

    `chunk` tokens are a batch; by default 1 where neurons remember, for NeuroBench sees one membrane a call, else 256.
    NeuroBench prints an exception inside a metric and reports 0.0; here it is a UserError.
    """
    remembers = any(module.has_membrane for module in model.modules() if isinstance(module, Neuron))
    chunk = chunk or (1 if remembers else min(256, max(1, len(ids) - 1)))
    metrics = [[Footprint, ConnectionSparsity], [ActivationSparsity, SynapticOperations, MembraneUpdates, BitsPerToken]]
    said = io.StringIO()
    with evaluating(model), contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        loader = DataLoader(Chunks(ids, chunk), batch_size=1, shuffle=False)
        found = Benchmark(SpikeGPTModel(model), loader, [], [], metrics).run()
    if swallowed := [line for line in said.getvalue().splitlines() if line.startswith("Error running")]:
        raise UserError(f"NeuroBench reports 0.0 where a metric failed: {swallowed[0]}")
    operations = {name: value / chunk for name, value in found["SynapticOperations"].items()}
    return found | {"SynapticOperations": operations, "MembraneUpdates": found["MembraneUpdates"] / chunk}

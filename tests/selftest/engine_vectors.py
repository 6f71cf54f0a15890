"""Vectors of the engines: what they are built from, and what the float model or the specification makes of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from kernel_vectors import Arrays, numbers
from torch import Tensor

import spikegpt
from spikegpt.config import EventConfig, ModelConfig
from spikegpt.engine import FixedEventModel
from spikegpt.engine.fixed.model import FixedModel
from spikegpt.engine.fixed.reference import Reference
from spikegpt.engine.fixed.run import numbers as format_numbers
from spikegpt.engine.fixed.run import prepared as fixed_arrays
from spikegpt.engine.integers import IntegerModel
from spikegpt.engine.packed import read_fixed
from spikegpt.engine.plan import mix_plans, prepared, site_plans
from spikegpt.engine.state_layout import Layout
from spikegpt.model.spikegpt import SpikeGPT

MODELS = {
    "graded": ModelConfig(vocab_size=300, n_layer=2, n_embd=96, spikes="before"),
    "odd width, leaky, jumps": ModelConfig(
        vocab_size=77, n_layer=1, n_embd=65, spikes="before", event=EventConfig(leak=0.4, reset="soft", smallest=2)
    ),
    "a channel mix first, hard reset": ModelConfig(
        vocab_size=64, n_layer=2, n_embd=128, n_ffn=200, spikes="before", architecture="RWKV-ffnPre",
        event=EventConfig(leak=0.5),
    ),
    "key, value and receptance in one": ModelConfig(
        vocab_size=64, n_layer=1, n_embd=150, spikes="before", event=EventConfig(shared=True, leak=0.2)
    ),
    "binary, spike embedding": ModelConfig(
        vocab_size=64, n_layer=1, n_embd=64, spikes="before", spike_embedding=True, event=EventConfig(levels=1, signed=False)
    ),
}  # fmt: skip


SITE = "matrix neuron inputs outputs is_signed membrane runs"
MIX = "name norm key value receptance output input shift wkv"
"""Fields in the order in which engine_case.h reads them."""


@torch.inference_mode()
def engine() -> Iterator[Arrays]:
    for config in MODELS.values():
        for bits in (8, 4):
            packed = IntegerModel.of(filled(config), bits)
            model, layout = packed.dequantise(), Layout(config)
            ids = torch.randint(config.vocab_size, (1, 45))
            logits, state = model(ids)
            chosen, next_logits, after = [], logits, state
            for _ in range(5):
                chosen.append(int(next_logits[0, -1].argmax()))
                next_logits, after = model(torch.tensor([chosen[-1:]]), after)
            yield {
                "shape": torch.tensor([45]),
                "sites": lines(site_plans(config, layout), SITE),
                "mixes": lines(mix_plans(config, layout), MIX),
                **tensors(prepared(packed)),
                **engine_settings(config),
                "ids": ids[0],
                "state": layout.empty(1)[0],
                **numbers(state_size=layout.size),
                "logits": logits[0],
                "state_out": layout.rows(state)[0],
                "chosen": torch.tensor(chosen),
            }


def fixed_engine() -> Iterator[Arrays]:
    """Small models by the specification."""
    for config in MODELS.values():
        assert config.event is not None
        config = replace(config, event=replace(config.event, leak=0.0))
        for bits in (8, 4):
            model = FixedModel.of(IntegerModel.of(filled(config), bits))
            layout, reference = Layout(model.config, torch.int32, -model.formats.exponent.top), Reference(model)
            ids = torch.randint(config.vocab_size, (40,))
            state, rows = reference.start(), []
            for token in ids.tolist():
                logits, state = reference.step(token, state)
                rows.append(torch.from_numpy(logits))
            after = torch.cat([torch.from_numpy(state[name]).flatten() for name in layout.offsets])
            logits = torch.stack(rows).int()
            yield fixed_case(model, layout, ids, logits, after.int()) | {"logits": logits}


def shipped_model(tokens: int) -> Arrays:
    """The model in the package, by this machine's engine: too long for the specification."""
    model, _ = read_fixed(Path(spikegpt.__file__).parent / "shipped")
    layout = Layout(model.config, torch.int32, -model.formats.exponent.top)
    ids = torch.randint(model.config.vocab_size, (1, 10_000), generator=torch.Generator().manual_seed(0))[:, :tokens]
    logits, state = FixedEventModel(model).integer_logits(ids)
    return fixed_case(model, layout, ids[0], logits[0], layout.rows(state)[0])


def fixed_case(model: FixedModel, layout: Layout, ids: Tensor, logits: Tensor, after: Tensor) -> Arrays:
    formats = "".join(f"{name} {value}\n" for name, value in format_numbers(model.formats).items())
    return {
        "shape": torch.tensor([len(ids)]),
        "sites": lines(site_plans(model.config, layout), SITE),
        "mixes": lines(mix_plans(model.config, layout), MIX),
        "formats": text(formats),
        **tensors(fixed_arrays(model)),
        **engine_settings(model.config),
        **numbers(state_size=layout.size),
        "ids": ids,
        "state": layout.empty(1)[0],
        "state_out": after,
        "checksums": checksums(logits),
    }


def checksums(logits: Tensor) -> Tensor:
    """FNV-1a over the logits [T, V] of each token, int64 [T]."""
    sums = np.full(len(logits), 2166136261, np.uint64)
    for column in logits.numpy().astype(np.uint32).T:
        sums = (sums ^ column) * np.uint64(16777619) & np.uint64(0xFFFFFFFF)
    return torch.from_numpy(sums.astype(np.int64))


def filled(config: ModelConfig) -> SpikeGPT:
    """A model whose every weight matters, and whose neurons fire now and then."""
    model = SpikeGPT(config, backend="reference")
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(0, 1.0 if name == "emb.weight" else parameter.shape[1] ** -0.5)
    for neuron in model.event_neurons():
        neuron.threshold.fill_(0.7)
        neuron.unit.fill_(0.2 if neuron.config.levels > 1 else 1.0)
    return model.eval()


def engine_settings(config: ModelConfig) -> Arrays:
    assert config.event is not None
    event = config.event
    return numbers(
        channels=config.n_embd, vocab=config.vocab_size, levels=event.levels, smallest=event.smallest,
        hard=event.reset == "hard", spike_embedding=bool(config.spike_embedding),
    )  # fmt: skip


def lines(plans: Sequence[dict[str, object]], fields: str) -> Tensor:
    """A line a plan: the fields in this order, -1 for one that is not there."""
    return text("".join(" ".join(str(int(x) if isinstance(x, bool) else x) for x in row) + "\n" for row in (
        [plan.get(field, -1) for field in fields.split()] for plan in plans
    )))  # fmt: skip


def tensors(arrays: dict[str, np.ndarray]) -> Arrays:
    """The arrays, and a list of their names."""
    named = {f"tensor/{name}": torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return named | {"tensors": text("".join(f"{name}\n" for name in arrays))}


def text(content: str) -> Tensor:
    return torch.tensor(list(content.encode()), dtype=torch.uint8)

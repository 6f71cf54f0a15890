"""A model's matrices as small integers, and back.

An event-driven model multiplies integers (events) with weights: with integer weights every sum is exact. Each output
has a scale, for all inputs (8 bits) or for each `GROUP` of them (4 bits).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import UserError
from ..model.sites import TIME_MIX, sites
from ..model.spikegpt import SpikeGPT
from .checks import GROUP, check_arrays, check_bits, check_event_driven
from .steps import on_steps


@dataclass(frozen=True)
class IntegerModel:
    """A model whose matrices are integers. `arrays` has the names of the model's state dict:

    matrices [inputs, outputs] int8, or uint8 [inputs, ceil(outputs / 2)] with two 4-bit weights + 8 a byte, the first
    one low, and `<name>.scale` [groups, outputs], of several groups whole numbers of `steps`; `emb.weight` [V, C] int8 and
    `emb.scale` [V]; the rest float32.
    What contradicts the config, or has values that no model has, is a UserError (`checks.check_arrays`).
    """

    config: ModelConfig
    bits: int
    arrays: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        check_event_driven(self.config)
        check_bits(self.bits)
        check_arrays(self.config, self.bits, self.arrays)

    @staticmethod
    def of(model: SpikeGPT, bits: int = 8) -> IntegerModel:
        """Round the weights of an event-driven model to the nearest of 255 (8 bits) or 15 (4 bits) steps."""
        check_event_driven(model.config)
        check_bits(bits)
        matrices = {site.name for site in sites(model.config)}
        arrays: dict[str, np.ndarray] = {}
        for name, tensor in model.state_dict().items():
            values = tensor.detach().cpu().float()
            if not values.isfinite().all():
                raise UserError(f"{name} has a value that is infinite or not a number: such a model cannot be packed")
            stem = name.removesuffix(".weight")
            if stem in matrices:
                assert model.config.event is not None
                integers, scale = _round(values, bits, model.config.event.levels)
                arrays[name] = (_halve if bits == 4 else np.ascontiguousarray)(integers.t().numpy())
                arrays[f"{stem}.scale"] = scale.numpy()
            elif name == "emb.weight":
                integers, scale = _round_embedding(values, bool(model.config.spike_embedding))
                arrays[name], arrays["emb.scale"] = integers.numpy(), scale.numpy()
            elif name == "lookup.weight":
                arrays[name], arrays["lookup.scale"] = round_lookup(values)
            else:
                arrays[name] = values.numpy()
        return IntegerModel(model.config, bits, arrays)

    def dequantise(self) -> SpikeGPT:
        """The float model with exactly these weights; what the engine is tested against."""
        with torch.device("meta"):
            model = SpikeGPT(self.config)
        model.to_empty(device="cpu")
        matrices = {site.name for site in sites(self.config)}
        values = {}
        for name in model.state_dict():
            array = self.arrays[name]
            stem = name.removesuffix(".weight")
            if stem in matrices:
                values[name] = self._weights(stem)
            elif name == "emb.weight":
                values[name] = torch.from_numpy(array.astype(np.float32) * self.arrays["emb.scale"][:, None])
            elif name == "lookup.weight":
                values[name] = torch.from_numpy(array.astype(np.float32) * self.arrays["lookup.scale"])
            else:
                values[name] = torch.from_numpy(array.copy())
        model.load_state_dict(values)
        for neuron in model.event_neurons():
            neuron.events_seen.zero_()
        return model.eval()

    def apart(self) -> IntegerModel:
        """The same model with key, value and receptance as matrices of their own: equal token shifts, neurons and outputs."""
        event = self.config.event
        assert event is not None
        if not event.shared:
            return self
        arrays: dict[str, np.ndarray] = {}
        for name, array in self.arrays.items():
            mix, _, rest = name.partition(".att.")
            if rest.startswith("input."):
                arrays |= {
                    f"{mix}.att.{matrix}.{rest.removeprefix('input.')}": third for matrix, third in self._thirds(name)
                }
            elif rest.startswith("neurons.input."):
                arrays |= {name.replace(".input.", f".{matrix}."): array for matrix in TIME_MIX[:3]}
            elif rest == "time_mix_k":
                arrays |= {f"{mix}.att.time_mix_{letter}": array for letter in "kvr"}
            else:
                arrays[name] = array
        config = dataclasses.replace(self.config, event=dataclasses.replace(event, shared=False))
        return IntegerModel(config, self.bits, arrays)

    def _thirds(self, name: str) -> Iterator[tuple[str, np.ndarray]]:
        """Weights or scales of an `att.input`, cut into those of key, value and receptance."""
        array = self.arrays[name]
        is_halved = array.dtype == np.uint8
        whole = unhalve(array, 3 * self.config.n_embd) if is_halved else array
        for matrix, third in zip(TIME_MIX, np.split(whole, 3, axis=1), strict=False):
            yield matrix, _halve(third) if is_halved else np.ascontiguousarray(third)

    def _weights(self, stem: str) -> Tensor:
        """[outputs, inputs] of one matrix, as floats."""
        array, scale = self.arrays[f"{stem}.weight"], self.arrays[f"{stem}.scale"]
        groups, outputs = scale.shape
        integers = array if self.bits == 8 else unhalve(array, outputs)
        rows = np.repeat(scale, GROUP if groups > 1 else len(integers), axis=0)[: len(integers)]
        return torch.from_numpy(np.ascontiguousarray((integers.astype(np.float32) * rows).T))


def _round(weight: Tensor, bits: int, levels: int) -> tuple[Tensor, Tensor]:
    """weight [outputs, inputs] -> integers of that shape (int8), scale [groups, outputs]."""
    if bits == 8:
        scale = _nonzero(weight.abs().amax(1, keepdim=True) / 127)
        return torch.round(weight / scale).to(torch.int8), scale.t().contiguous()
    pieces = weight.split(GROUP, dim=1)
    scale = torch.cat([_scale_of_four_bits(piece) for piece in pieces], 1)
    if len(pieces) > 1:
        scale = torch.from_numpy(on_steps(scale.t().numpy(), weight.shape[1], levels)).t()
    scale = _nonzero(scale)
    rounded = [torch.round(piece / s[:, None]).clamp(-7, 7) for piece, s in zip(pieces, scale.t(), strict=True)]
    return torch.cat(rounded, 1).to(torch.int8), scale.t().contiguous()


def _scale_of_four_bits(weight: Tensor) -> Tensor:
    """weight [outputs, n] -> scale [outputs, 1] of integers -7..7: of a few, the one with the least square error.

    A scale that clips the largest weight a little represents the others better. That of zeros is 0.
    """
    largest = weight.abs().amax(1, keepdim=True)
    best, least = largest / 7, torch.full_like(largest, torch.inf)
    for step in range(9):
        scale = _nonzero(largest) * (1 - 0.05 * step) / 7
        integers = torch.round(weight / scale).clamp(-7, 7)
        error = ((integers * scale - weight) ** 2).sum(1, keepdim=True)
        better = (error < least) & (largest > 0)
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def _round_embedding(weight: Tensor, is_spike: bool) -> tuple[Tensor, Tensor]:
    """weight [V, C] -> int8 [V, C], scale [V]; of an embedding that becomes spikes only the sign counts."""
    if is_spike:
        return torch.where(weight >= 0, 1, -1).to(torch.int8), torch.ones(len(weight))
    scale = _nonzero(weight.abs().amax(1) / 127)
    return torch.round(weight / scale[:, None]).to(torch.int8), scale


def round_lookup(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """weight [rows, K] -> int16 of that shape, scale [1]: rows of several n-grams are added up before they are scaled."""
    scale = _nonzero(weight.abs().amax().reshape(1) / 32767)
    return torch.round(weight / scale).to(torch.int16).numpy(), scale.numpy()


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)


def _halve(integers: np.ndarray) -> np.ndarray:
    """[inputs, outputs] of -7..7 -> uint8 [inputs, ceil(outputs / 2)], offset by 8, the first of two in the low bits."""
    padded = np.zeros((len(integers), -(-integers.shape[1] // 2) * 2), np.int8)
    padded[:, : integers.shape[1]] = integers
    shifted = (padded + 8).astype(np.uint8)
    return shifted[:, ::2] | shifted[:, 1::2] << 4


def unhalve(halves: np.ndarray, outputs: int) -> np.ndarray:
    """uint8 [inputs, ceil(outputs / 2)] -> int8 [inputs, outputs] of -7 to 7."""
    both = np.stack([halves & 15, halves >> 4], axis=-1).reshape(len(halves), -1)
    return both[:, :outputs].astype(np.int8) - 8

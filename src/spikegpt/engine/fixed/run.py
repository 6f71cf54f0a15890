"""Running a model in integers only: called like a `SpikeGPT`, on the CPU; logits are floats, all before them is not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...model.state import State
from ...tokenizer import Tokenizer
from ..base import EngineModel
from ..packed import read_fixed
from ..state_layout import Layout
from .formats import EMBEDDING_FRACTION, Formats
from .model import FixedModel, matrices


class FixedEventModel(EngineModel):
    """A `FixedModel` on its engine: `logits, state = model(ids, state)` as in `SpikeGPT`; the state is of int32.

    The same bits come out on every machine, with any number of threads, and however a text is cut.
    """

    def __init__(
        self, model: FixedModel, tokenizer: Tokenizer | None = None, *, threads: int | None = None, isa: str = ""
    ) -> None:
        layout = Layout(model.config, torch.int32, -model.formats.exponent.top)
        super().__init__(model.config, model.bits, tokenizer, layout)
        self.formats = model.formats
        self._unit = 2.0**-model.formats.logit.fraction
        self._tops = tops(layout, model.formats, model.config.n_embd)
        self._start("FixedEngine", prepared(model), threads, isa, formats=numbers(model.formats))

    @staticmethod
    def load(directory: str | os.PathLike[str], *, threads: int | None = None) -> FixedEventModel:
        """The engine for an event-driven model's directory; what it does not hold in integers is made in memory."""
        return FixedEventModel(*read_fixed(Path(directory)), threads=threads)

    def integer_logits(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """ids [B, T] int64 -> logits [B, T, V] int32 in the format `formats.logit`, and the next state."""
        return self._run(ids, state)

    def _rows(self, state: State | None, batch_size: int) -> Tensor:
        rows = super()._rows(state, batch_size)
        if bool(((rows > self._tops) | (rows < -self._tops)).any()):  # sums of such values may not fit 32 bits
            raise UserError("the state has a value that is too large for its format; begin without it")
        return rows


def tops(layout: Layout, formats: Formats, channels: int) -> Tensor:
    """int32 [size]: the largest size of every value in a state."""
    of_wkv = (formats.numerator.top, formats.denominator.top, formats.exponent.top)
    most = torch.full((layout.size,), formats.norm.top, dtype=torch.int32)
    for name, at in layout.offsets.items():
        if name.endswith(".wkv"):
            most[at : at + 3 * channels] = torch.tensor(of_wkv, dtype=torch.int32).repeat_interleave(channels)
    return most


def prepared(model: FixedModel) -> dict[str, np.ndarray]:
    """The arrays as the engine wants them: weights, constants, and the largest output of every matrix."""
    arrays = model.weights | {name: np.ascontiguousarray(values, np.int32) for name, values in model.constants.items()}
    for matrix, kind in matrices(model.config):
        arrays[f"{matrix}.top"] = np.array([getattr(model.formats, kind).top], np.int32)
        arrays.setdefault(f"{matrix}.square", np.array([-1], np.int32))
    return arrays


def numbers(formats: Formats) -> dict[str, int]:
    """The formats as the engine wants them: width and fraction of every kind of value, and the sizes of tables."""
    found = {name: value for name, value in formats.to_dict().items() if isinstance(value, int)}
    for name, value in formats.values().items():
        found |= {f"{name}.width": value.width, f"{name}.fraction": value.fraction}
    return found | {"embedding_fraction": EMBEDDING_FRACTION}

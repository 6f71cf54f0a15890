"""Running a model in integers only: called like a `SpikeGPT`, on the CPU; logits are floats, all before them is not.

B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError, UserError
from ...model.state import State
from ...tokenizer import Tokenizer
from ..integers import GROUP
from ..meter import EventMeter, counters_of
from ..packed import read_fixed
from ..run import MISSING, _engine, useful_threads
from ..state_layout import Layout
from ..turns import as_id, as_ids
from .formats import EMBEDDING_FRACTION
from .model import FixedModel


class FixedEventModel:
    """A `FixedModel` on its engine: `logits, state = model(ids, state)` as in `SpikeGPT`; the state is of int32.

    The same bits come out on every machine, with any number of threads, and however a text is cut.
    """

    device = torch.device("cpu")
    training = False
    _dense = False

    def __init__(
        self, model: FixedModel, tokenizer: Tokenizer | None = None, *, threads: int | None = None, isa: str = ""
    ) -> None:
        if _engine is None:
            raise UserError(
                f"the integers-only engine is not built ({MISSING}); reinstall spikegpt with a C++ compiler"
            )
        if threads is not None and threads < 1:
            raise UsageError(f"threads={threads} must be above zero")
        if isa and isa not in _engine.instruction_sets():
            raise UsageError(f"this machine has no {isa!r}; it has {', '.join(_engine.instruction_sets())}")
        self.config, self.tokenizer, self.bits, self.formats = model.config, tokenizer, model.bits, model.formats
        self._layout = Layout(model.config, torch.int32, -model.formats.exponent.top)
        tensors = model.weights | {name: _array(values) for name, values in model.constants.items()}
        try:
            self._engine = _engine.FixedEngine(
                tensors, _numbers(model, threads or useful_threads(model.config.n_embd)), self._layout.offsets, isa
            )
        except ValueError as error:
            raise UserError(f"the packed model does not fit its config: {error}; pack it again") from None

    @staticmethod
    def load(directory: str | os.PathLike[str], *, threads: int | None = None) -> FixedEventModel:
        """The engine for an event-driven model's directory; what it does not hold in integers is made in memory."""
        return FixedEventModel(*read_fixed(Path(directory)), threads=threads)

    @property
    def threads(self) -> int:
        """Threads that work on a token."""
        return self._engine.threads

    @property
    def isa(self) -> str:
        """The instruction set that was chosen for this machine."""
        return self._engine.isa

    def init_state(self, batch_size: int = 1) -> State:
        """The state before any token."""
        return self._layout.view(self._layout.empty(batch_size))

    def integer_logits(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """ids [B, T] int64 -> logits [B, T, V] int32 in the format `formats.logit`, and the next state."""
        if ids.ndim != 2 or ids.shape[1] == 0:
            raise UsageError(f"ids must be [batch, tokens] with at least one token, not {list(ids.shape)}")
        rows = self._rows(state, len(ids))
        logits = torch.empty(*ids.shape, self.config.vocab_size, dtype=torch.int32)
        for sequence, tokens in enumerate(ids.cpu().numpy()):
            self._engine.run(
                as_ids(tokens), rows[sequence].numpy(), logits[sequence].numpy(), False, self._dense,
                counters_of(self._engine),
            )  # fmt: skip
        return logits, self._layout.view(rows)

    def __call__(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """ids [B, T] int64 -> logits [B, T, V] float32 and the next state; without a state the text begins."""
        logits, state = self.integer_logits(ids, state)
        return logits * 2.0**-self.formats.logit.fraction, state

    def stream(self, state: State | None = None) -> FixedStream:
        """One text read token by token from `state` on: the fastest way to generate."""
        return self._stream(self._rows(state, 1))

    def read(self, ids: Tensor, state: State | None = None) -> State:
        """The state after ids [B, T] int64, of which no logits are wanted."""
        rows = self._rows(state, len(ids))
        for row, tokens in zip(rows, ids.cpu().numpy(), strict=True):
            self._stream(row[None]).read(tokens)
        return self._layout.view(rows)

    def dense(self) -> FixedEventModel:
        """This model on the same engine, but reading every weight, as an engine without events would."""
        dense = copy.copy(self)
        dense._dense = True
        return dense

    def meter(self, *, neurons: bool = True) -> EventMeter:
        """A context that counts the events of this thread's calls; with `neurons` also those of each neuron."""
        return EventMeter(self._engine, neurons)

    def _stream(self, rows: Tensor) -> FixedStream:
        return FixedStream(
            self._engine, self._layout, rows, self.config.vocab_size, self.formats.logit.fraction, self._dense
        )

    def _rows(self, state: State | None, batch_size: int) -> Tensor:
        if state is None:
            return self._layout.empty(batch_size)
        if state.batch_size != batch_size:
            raise UsageError(f"the state is of {state.batch_size} sequences, not {batch_size}")
        return self._layout.rows(state)


class FixedStream:
    """One text in the making, as `engine.Stream`."""

    def __init__(self, engine: Any, layout: Layout, rows: Tensor, vocab_size: int, fraction: int, dense: bool) -> None:
        self._engine, self._layout, self._rows, self._dense = engine, layout, rows, dense
        self._integers = torch.empty(1, vocab_size, dtype=torch.int32)
        self._logits = torch.empty(vocab_size)
        self._one = 2.0**-fraction
        self._id = np.empty(1, np.int64)
        self._state_row, self._logits_rows = rows[0].numpy(), self._integers.numpy()

    def step(self, token: int) -> Tensor:
        """Read one token; logits [V] of the next, overwritten by the next step."""
        self._id[0] = as_id(token)
        return self._run(self._id)

    def read(self, ids: Sequence[int] | np.ndarray) -> Tensor:
        """Read many tokens, faster than one by one; logits [V] after the last."""
        if len(ids) == 0:
            raise UsageError("there is no token to read")
        return self._run(as_ids(ids))

    def state(self) -> State:
        """A copy of the state after all that was read."""
        return self._layout.view(self._rows.clone())

    def _run(self, ids: np.ndarray) -> Tensor:
        self._engine.run(ids, self._state_row, self._logits_rows, True, self._dense, counters_of(self._engine))
        return torch.mul(self._integers[0], self._one, out=self._logits)


def _array(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.int32)


def _numbers(model: FixedModel, threads: int) -> dict[str, int]:
    """What the engine is told beside the tensors."""
    config, formats = model.config, model.formats
    assert config.event is not None
    numbers = {
        "n_layer": config.n_layer, "n_embd": config.n_embd, "hidden": config.hidden, "vocab_size": config.vocab_size,
        "levels": config.event.levels, "smallest": config.event.smallest, "signed": int(config.event.signed),
        "spike_embedding": int(bool(config.spike_embedding)), "ffn_pre": int(config.architecture == "RWKV-ffnPre"),
        "threads": threads, "group": GROUP, "embedding_fraction": EMBEDDING_FRACTION,
    }  # fmt: skip
    for name, value in formats.values().items():
        numbers |= {f"{name}.width": value.width, f"{name}.fraction": value.fraction}
    sizes = {name: value for name, value in formats.to_dict().items() if isinstance(value, int)}
    return numbers | sizes

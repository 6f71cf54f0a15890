"""What running a packed model is, whichever engine does it: called like a `SpikeGPT`, on the CPU, in integers.

B batch, T tokens, V vocabulary. Only the weights of inputs that fire are read.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Mapping
from collections.abc import Sequence as Ids
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import UsageError, UserError
from ..generation.sampling import NOT_FINITE, Sampling, not_finite
from ..model.protocol import Likelihoods
from ..model.state import State
from ..tokenizer import Tokenizer
from .lookup import IntegerLookup
from .meter import EventMeter, counters_of
from .plan import mix_plans, site_plans
from .state_layout import Layout
from .turns import Sequence, Spikes, as_id, as_ids, likelihoods

try:
    import spikegpt.engine._engine as _engine  # pyright: ignore[reportMissingImports] (built on installation)
except ImportError as error:  # no compiler where this was installed
    _engine: Any = None
    _missing = str(error)
else:
    _missing = None

MISSING = _missing
"""Why the engines cannot be used, or None."""


MOST_THREADS = 256
"""Every thread allocates its own buffers."""


class EngineModel:
    """A packed model on an engine: `logits, state = model(ids, state)` as in `SpikeGPT`.

    Results do not depend on the number of threads. Several callers may share an engine; their calls are serialised.
    """

    device = torch.device("cpu")
    training = False
    _dense = False
    _unit: float | None = None
    """What logits are counted in where the engine says integers."""
    _lookup: IntegerLookup | None = None
    """The look-up lane of a classifier that has one."""

    def __init__(self, config: ModelConfig, bits: int, tokenizer: Tokenizer | None, layout: Layout) -> None:
        self.config, self.bits, self.tokenizer = config, bits, tokenizer
        self._layout = layout
        self._engine: Any = None

    def _start(self, name: str, tensors: dict[str, np.ndarray], threads: int | None, isa: str, **more: Any) -> None:
        """Make the native engine of this name; `threads` None: as many as are useful."""
        if _engine is None:
            raise UserError(f"the event-driven engine is not built ({MISSING}); reinstall spikegpt with a C++ compiler")
        if threads is not None and threads < 1:
            raise UsageError(f"threads={threads} must be above zero")
        if threads is not None and threads > MOST_THREADS:
            raise UsageError(f"threads={threads} is more than {MOST_THREADS}")
        if isa and isa not in _engine.instruction_sets():
            raise UsageError(f"this machine has no {isa!r}; it has {', '.join(_engine.instruction_sets())}")
        config, event = self.config, self.config.event
        assert event is not None
        try:
            self._engine = getattr(_engine, name)(
                tensors=tensors,
                sites=[_engine.Site(**plan) for plan in site_plans(config, self._layout)],
                mixes=[_engine.Mix(**plan) for plan in mix_plans(config, self._layout)],
                channels=config.n_embd,
                vocab=config.vocab_size,
                levels=event.levels,
                smallest=event.smallest,
                spike_embedding=bool(config.spike_embedding),
                state_size=self._layout.size,
                threads=threads or useful_threads(config.n_embd),
                isa=isa,
                **more,
            )
        except ValueError as error:
            raise UserError(f"the packed model does not fit its config: {error}; pack it again") from None

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

    def check_state(self, state: State) -> None:
        """UserError for a state of one text that this model cannot go on from."""
        self._rows(state, 1)

    def __call__(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """ids [B, T] int64 -> logits [B, T, V] float32 and the next state; without a state the text begins."""
        logits, state = self._run(ids, state)
        return logits if self._unit is None else logits * self._unit, state

    def _run(self, ids: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The same, logits as the engine says them."""
        if ids.ndim != 2 or ids.shape[1] == 0:
            raise UsageError(f"ids must be [batch, tokens] with at least one token, not {list(ids.shape)}")
        rows = self._rows(state, len(ids))
        logits = torch.empty(*ids.shape, self.config.outputs, dtype=rows.dtype)
        for sequence, tokens in enumerate(ids.cpu().numpy()):
            row, said = rows[sequence].numpy(), logits[sequence].numpy()
            self._engine.run(as_ids(tokens), row, said, False, self._dense, counters_of(self._engine))
            if self._lookup is not None:
                self._lookup.add(tokens, row, said)
        return logits, self._layout.view(rows)

    def stream(self, state: State | None = None) -> Stream:
        """One text read token by token from `state` on: the fastest way to generate."""
        return self._stream(self._rows(state, 1))

    def read(self, ids: Tensor, state: State | None = None) -> State:
        """The state after ids [B, T] int64, of which no logits are wanted."""
        rows = self._rows(state, len(ids))
        for row, tokens in zip(rows, ids.cpu().numpy(), strict=True):
            self._stream(row[None]).read(tokens)
        return self._layout.view(rows)

    def sequence(
        self,
        ids: Ids[int] | np.ndarray,
        state: State | None = None,
        *,
        sampling: Sampling | None = None,
        counts: Mapping[int, int] | None = None,
        logprobs: int | None = None,
        echo: bool = False,
        chooses: bool = True,
        spikes: Spikes = "none",
    ) -> Sequence:
        """A text that continues from `state` with `ids`, of which there must be at least one.

        `counts` says how often the text before it chose each token, 0 for those it read: the penalties remember them.
        With `logprobs` every token chosen has a score, beside that many of the likeliest; with `echo` those that are read
        too. `chooses=False` only reads. `spikes` says whether, and how, who fired is kept. The settings' seed is drawn here
        if there is none. Raises IndexError for a token outside the vocabulary.
        """
        if len(ids) == 0:
            raise UsageError("a text needs at least one token")
        rows = self._rows(state, 1)
        tokens = self.config.vocab_size if self.tokenizer is None else self.tokenizer.vocab_size
        settings = (sampling or Sampling()).within(tokens, self.config.vocab_size)
        sampler = native_sampler(settings, self.config.vocab_size)
        if counts and settings.remembers:
            sampler.restore(as_ids(list(counts)), as_ids(list(counts.values())))
        native = _engine.Sequence(
            rows[0].numpy(), as_ids(ids), sampler, -1 if logprobs is None else logprobs, echo, chooses, spikes,
        )  # fmt: skip
        return Sequence(native, self._layout, rows)

    def advance(self, sequences: Ids[Sequence], *, together: bool = True) -> list[int]:
        """A turn: each text reads at most `PIECE` tokens and, if none is left, chooses its next.

        Returns what each chose, or `sampling.READING` or `sampling.NOT_FINITE`. `together`: as many as
        fit go through the model in one pass, which was faster at every size that was measured. Bits do not depend on it,
        nor on who else is there.
        """
        natives = [sequence.native for sequence in sequences]
        return self._engine.advance(natives, self._dense, together, counters_of(self._engine))

    def score(self, rows: Ids[Ids[int] | np.ndarray], state: State | None = None) -> tuple[list[Likelihoods], State]:
        """How likely each row's tokens but the first are, and the states after all but the last; rows have any length.

        The rows share turns, and no more than `PIECE` tokens' logits are there at a time. Raises IndexError for a token
        outside the vocabulary, UserError where the model predicts no numbers.
        """
        states = self._rows(state, len(rows))
        sampler = native_sampler(Sampling(), self.config.vocab_size)  # shared: it chooses nothing
        texts: dict[int, Any] = {}
        for at, ids in enumerate(rows):
            if len(ids) > 1:
                texts[at] = _engine.Sequence(
                    states[at].numpy(), as_ids(ids), sampler, logprobs=1, echo=True, chooses=False, reads_last=False
                )
        while waiting := [text for text in texts.values() if text.waiting]:
            if NOT_FINITE in self._engine.advance(waiting, self._dense, True, counters_of(self._engine)):
                raise not_finite()
        scored = [likelihoods(texts[at].take_scores() if at in texts else []) for at in range(len(rows))]
        return scored, self._layout.view(states)

    def spike_bytes(self, spikes: Spikes) -> int:
        """Bytes of one token's spikes."""
        return self._engine.spike_bytes(spikes)

    def dense(self) -> Self:
        """This model on the same engine, but reading every weight, as an engine without events would."""
        dense = copy.copy(self)
        dense._dense = True
        return dense

    def read_weights(self) -> float:
        """Bytes per second at which these threads read all the weights in order: the memory's bandwidth."""
        start = time.perf_counter()
        self._engine.read_weights()
        return self._engine.weight_bytes / (time.perf_counter() - start)

    def meter(self, *, neurons: bool = True) -> EventMeter:
        """A context that counts the events of this thread's calls; with `neurons` also those of each neuron."""
        return EventMeter(self._engine, neurons)

    def _stream(self, rows: Tensor) -> Stream:
        return Stream(self._engine, self._layout, rows, self.config.outputs, self._dense, self._lookup)

    def _rows(self, state: State | None, batch_size: int) -> Tensor:
        if state is None:
            return self._layout.empty(batch_size)
        if state.batch_size != batch_size:
            raise UsageError(f"the state is of {state.batch_size} sequences, not {batch_size}")
        return self._layout.rows(state)


class Stream:
    """A text that is read token by token, without allocations."""

    def __init__(
        self, engine: Any, layout: Layout, rows: Tensor, outputs: int, dense: bool, lookup: IntegerLookup | None
    ) -> None:
        self._engine, self._layout, self._rows, self._dense, self._lookup = engine, layout, rows, dense, lookup
        said = torch.empty(1, outputs, dtype=rows.dtype)
        is_float = said.is_floating_point()
        self._logits = said[0] if is_float else torch.empty(outputs)
        self._id = np.empty(1, np.int64)
        self._state_row, self._said = rows[0].numpy(), said.numpy()
        self._scores = None if is_float else self._logits.numpy()

    def step(self, token: int) -> Tensor:
        """Read one token; logits [V] of the next, overwritten by the next step."""
        self._id[0] = as_id(token)
        return self._run(self._id)

    def read(self, ids: Ids[int] | np.ndarray) -> Tensor:
        """Read many tokens, faster than one by one; logits [V] after the last."""
        if len(ids) == 0:
            raise UsageError("there is no token to read")
        return self._run(as_ids(ids))

    def state(self) -> State:
        """A copy of the state after all that was read."""
        return self._layout.view(self._rows.clone())

    def _run(self, ids: np.ndarray) -> Tensor:
        counters = counters_of(self._engine)
        self._engine.run(ids, self._state_row, self._said, True, self._dense, counters, self._scores)
        if self._lookup is not None:
            self._lookup.add(ids, self._state_row, self._said)
        return self._logits


def native_sampler(settings: Sampling, vocab_size: int) -> Any:
    """The engine's own sampler, which `generation.sampling.Sampler` specifies."""
    outside = next((token for token in settings.logit_bias if token >= vocab_size), None)
    if outside is not None:
        raise UsageError(f"logit_bias: token {outside} is not in the vocabulary of {vocab_size}")
    return _engine.Sampler(
        vocab_size, settings.temperature, settings.top_k, settings.top_p, settings.min_p, settings.repetition_penalty,
        settings.presence_penalty, settings.frequency_penalty, list(settings.logit_bias.items()),
        settings.random_seed(),
    )  # fmt: skip


def useful_threads(channels: int) -> int:
    """Number of useful threads: below 128 channels each, synchronisation costs more than parallelism saves."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, max(1, channels // 128), 8)

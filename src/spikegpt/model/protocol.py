"""What a runnable model is, whoever computes it: a `SpikeGPT`, or an event-driven model on the integer engine.

B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import UsageError
from .meter import LayerActivity, SiteCounts
from .state import State

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer


class Meter(Protocol):
    """Counts what the neurons of a model do inside a `with` block."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def rate(self) -> float:
        """Fraction of neuron-steps with a spike; 0 for a model without neurons."""
        ...

    @property
    def activity(self) -> float:
        """Fraction of the weights that were read; 1 where the products read floats."""
        ...

    def layers(self) -> list[LayerActivity]:
        """One row per layer of neurons."""
        ...


@runtime_checkable
class EventCounter(Meter, Protocol):
    """A meter that counts what was read behind the neurons too, as the integer engine's does."""

    def counts(self) -> list[SiteCounts]:
        """One row per matrix, in the order they run."""
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """A model that reads tokens and predicts the next one, with everything it remembers in a `State`."""

    config: ModelConfig
    tokenizer: Tokenizer | None
    training: bool

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    def __call__(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Ids [B, T] int64 -> logits [B, T, V] float32 and the next state; without a state the text begins."""
        ...

    def init_state(self, batch_size: int = 1) -> State:
        """The state before any token."""
        ...

    def read(self, ids: Tensor, state: State | None = None) -> State:
        """The state after ids [B, T] int64, where no logits are wanted."""
        ...

    def meter(self) -> Meter:
        """A context that counts what the neurons do."""
        ...


class Stepper(Protocol):
    """One text read token by token."""

    def step(self, token: int) -> Tensor:
        """Read one token; logits [V] float32 of the next, overwritten by the next step."""
        ...

    def state(self) -> State:
        """The state after all that was read."""
        ...


class TokenStream(Stepper, Protocol):
    """One text read in place, without copies of the state between tokens."""

    def read(self, ids: Sequence[int]) -> Tensor:
        """Read at least one token; logits [V] float32 after the last, overwritten by the next step."""
        ...


@runtime_checkable
class Streaming(LanguageModel, Protocol):
    """A model with a faster way to read a single text; it takes any number of tokens at once."""

    def stream(self, state: State | None = None) -> TokenStream:
        """One text from `state` on."""
        ...


class Likelihoods(NamedTuple):
    """How likely tokens were, each after all before it, under the model itself."""

    logprobs: np.ndarray
    """float32 [T], in nats."""
    greedy: np.ndarray
    """bool [T]: whether none was likelier."""


@runtime_checkable
class Scoring(LanguageModel, Protocol):
    """A model that scores given texts without handing out their logits."""

    def score(
        self, rows: Sequence[Sequence[int] | np.ndarray], state: State | None = None
    ) -> tuple[list[Likelihoods], State]:
        """How likely each row's tokens but the first are, and the states after all but the last; rows have any length."""
        ...


def tokenizer_of(model: LanguageModel, tokenizer: Tokenizer | None = None) -> Tokenizer:
    """The given tokenizer, else the model's own; a UsageError where there is neither."""
    tokenizer = tokenizer or model.tokenizer
    if tokenizer is None:
        raise UsageError("this model has no tokenizer; load it with spikegpt.load, or set model.tokenizer")
    return tokenizer


def check_predicts_tokens(model: LanguageModel) -> None:
    """UsageError where the model is a classifier, whose outputs are labels and no tokens."""
    if model.config.task is not None:
        raise UsageError("this is a classifier: it labels texts (spikegpt classify) and predicts no tokens")


@contextlib.contextmanager
def evaluating(model: LanguageModel) -> Iterator[None]:
    """Dropout off inside, and as it was afterwards."""
    if not (isinstance(model, nn.Module) and model.training):
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """UsageError unless `ids` are [B, T] whole numbers in [0, V); on a GPU their values are not looked at."""
    if ids.ndim != 2 or 0 in ids.shape:
        raise UsageError(f"ids must be [batch, tokens] with at least one token, not {list(ids.shape)}")
    if ids.dtype not in (torch.int64, torch.int32):
        raise UsageError(f"ids must be int64 or int32, not {str(ids.dtype).removeprefix('torch.')}")
    if ids.device.type == "cpu" and not torch.compiler.is_compiling():
        least, most = int(ids.min()), int(ids.max())
        if least < 0 or most >= vocab_size:
            wrong = least if least < 0 else most
            raise UsageError(f"token {wrong} is not in the vocabulary of {vocab_size}")

"""Token files to batches whose position can be kept and resumed.

Legend: B rows a batch, T context in tokens, N tokens in a file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from ..errors import UsageError, UserError
from .token_file import TokenFile


class Batches(ABC):
    """Batches of one step after another, whose position can be kept.

    A step's `world * batch_size` rows are dealt out to the ranks, so that all processes together read what one process
    with the whole batch would.
    """

    def __init__(self, batch_size: int, seed: int, *, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1 or not 0 <= rank < world:
            raise UsageError(f"{batch_size=}, {rank=}, {world=} make no batch")
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.step = 0

    @abstractmethod
    def next_batch(self) -> tuple[torch.Tensor, ...]:
        """What the objective takes."""

    @property
    def begins(self) -> bool:
        """Whether the rows of the next batch begin from an empty state, and do not continue those of the last batch."""
        return True

    @property
    @abstractmethod
    def batch_tokens(self) -> float:
        """Tokens in a batch of all processes, on average."""

    @property
    @abstractmethod
    def epoch_tokens(self) -> int:
        """Tokens in the data."""

    @property
    @abstractmethod
    def bytes_per_token(self) -> float | None:
        """Bytes of raw text per token, for bits per byte; None where a batch's loss is not that of its text."""

    def state_dict(self) -> dict[str, Any]:
        """The position, in JSON values."""
        return {"step": self.step} | self._identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; a UserError if these are not the same batches over the same data."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise UserError(f"cannot resume the data: {name} was {state.get(name)!r} and is now {value!r}")
        self.step = int(state["step"])

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """All that the batches depend on beside the step, in JSON values."""


class FileBatches(Batches):
    """Contexts of a token file: B rows of T tokens."""

    def __init__(
        self, token_file: TokenFile, batch_size: int, context: int, seed: int, *, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(batch_size, seed, rank=rank, world=world)
        if context < 1:
            raise UsageError(f"{context=} makes no batch")
        self.token_file, self.context = token_file, context

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and the ids that follow them, both int64 [B, T]."""
        ids = self.token_file.ids
        rows = np.stack([ids[start : start + self.context + 1] for start in self._starts()]).astype(np.int64)
        self.step += 1
        return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())

    @property
    def batch_tokens(self) -> float:
        return self.batch_size * self.context * self.world

    @property
    def epoch_tokens(self) -> int:
        return self.token_file.n_tokens

    @property
    def bytes_per_token(self) -> float:
        return self.token_file.n_bytes / self.token_file.n_tokens

    @abstractmethod
    def _starts(self) -> Iterable[int]:
        """Where each row of this rank's batch begins, B places in the file."""


class Windows(FileBatches):
    """Random windows: those of step s depend on the seed and s alone, whatever was read before."""

    def __init__(
        self, token_file: TokenFile, batch_size: int, context: int, seed: int, *, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(token_file, batch_size, context, seed, rank=rank, world=world)
        if token_file.n_tokens <= context:
            raise UserError(
                f"the text is shorter than a context: {token_file.n_tokens} tokens, and windows of {context} need "
                f"{context + 1}; give more text or a context below {max(token_file.n_tokens, 2)}"
            )

    def _starts(self) -> Iterable[int]:
        generator = np.random.default_rng([self.seed, self.step])
        last = self.token_file.n_tokens - self.context
        starts = generator.integers(0, last, self.batch_size * self.world)
        return starts[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]

    def _identity(self) -> dict[str, Any]:
        whole = self.batch_size * self.world
        return {"seed": self.seed, "batch": whole, "context": self.context, "data": self.token_file.hash}


def sequential(token_file: TokenFile, chunk: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The file from start to end: ids and the ids that follow them, int64 [1, T] with T = `chunk` but at the end."""
    ids = token_file.ids
    for start in range(0, token_file.n_tokens - 1, chunk):
        window = torch.from_numpy(ids[start : start + chunk + 1].astype(np.int64))[None]
        yield window[:, :-1], window[:, 1:]


class Streams(FileBatches):
    """The file read in parallel from `world * batch_size` places, each going on where it was; as `data.Windows`.

    Every epoch begins a little further into the file, so that chunks do not always end at the same tokens.
    """

    def __init__(
        self, token_file: TokenFile, batch_size: int, context: int, seed: int, *, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(token_file, batch_size, context, seed, rank=rank, world=world)
        rows = batch_size * world
        self.chunks = (token_file.n_tokens - 1) // (rows * context)
        if self.chunks == 0:
            raise UserError(
                f"the text is too short for {rows} streams: {token_file.n_tokens} tokens, and a chunk of {context} in each "
                f"needs {rows * context + 1}; give more text, a smaller batch or a context of at most "
                f"{max((token_file.n_tokens - 1) // rows, 1)}"
            )

    @property
    def begins(self) -> bool:
        """Whether the next batch is the first of an epoch."""
        return self.step % self.chunks == 0

    def _starts(self) -> Iterable[int]:
        epoch, chunk = divmod(self.step, self.chunks)
        length = self.chunks * self.context
        slack = self.token_file.n_tokens - 1 - self.batch_size * self.world * length
        first = int(np.random.default_rng([self.seed, epoch]).integers(0, slack + 1)) + chunk * self.context
        rows = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return [first + row * length for row in rows]

    def _identity(self) -> dict[str, Any]:
        whole = self.batch_size * self.world
        return {"streams": whole, "seed": self.seed, "context": self.context, "data": self.token_file.hash}

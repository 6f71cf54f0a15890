"""Batches that go on where the last ones ended, for training that carries the state from batch to batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .errors import UsageError, UserError
from .token_file import TokenFile


class Streams:
    """The file read in parallel from `world * batch_size` places, each going on where it was; as `data.Windows`.

    Every epoch begins a little further into the file, so that chunks do not always end at the same tokens.
    """

    def __init__(
        self, token_file: TokenFile, batch_size: int, context: int, seed: int, *, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size < 1 or context < 1 or not 0 <= rank < world:
            raise UsageError(f"{batch_size=}, {context=}, {rank=}, {world=} make no batch")
        rows = batch_size * world
        self.chunks = (token_file.n_tokens - 1) // (rows * context)
        if self.chunks == 0:
            raise UserError(
                f"the text is too short for {rows} streams: {token_file.n_tokens} tokens, and a chunk of {context} in each "
                f"needs {rows * context + 1}; give more text, a smaller batch or a context of at most "
                f"{max((token_file.n_tokens - 1) // rows, 1)}"
            )
        self.token_file, self.batch_size, self.context = token_file, batch_size, context
        self.seed, self.rank, self.world = seed, rank, world
        self.step = 0

    @property
    def begins(self) -> bool:
        """Whether the next batch is the first of an epoch: its streams go on from nothing."""
        return self.step % self.chunks == 0

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and the ids that follow them, both int64 [B, T]."""
        epoch, chunk = divmod(self.step, self.chunks)
        length = self.chunks * self.context
        slack = self.token_file.n_tokens - 1 - self.batch_size * self.world * length
        first = int(np.random.default_rng([self.seed, epoch]).integers(0, slack + 1)) + chunk * self.context
        rows = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        starts = [first + row * length for row in rows]
        ids = np.stack([self.token_file.ids[start : start + self.context + 1] for start in starts]).astype(np.int64)
        self.step += 1
        return torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(ids[:, 1:].copy())

    def state_dict(self) -> dict[str, Any]:
        """The position, in JSON values."""
        return {"step": self.step} | self._identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken; a UserError if these are not the same streams over the same tokens."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise UserError(f"cannot resume the data: {name} was {state.get(name)!r} and is now {value!r}")
        self.step = int(state["step"])

    def _identity(self) -> dict[str, Any]:
        whole = self.batch_size * self.world
        return {"streams": whole, "seed": self.seed, "context": self.context, "data": self.token_file.hash}

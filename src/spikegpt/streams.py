"""Batches that go on where the last ones ended, for training that carries the state from batch to batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .data import Batches
from .errors import UserError
from .token_file import TokenFile


class Streams(Batches):
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
        """Whether the next batch is the first of an epoch: its streams go on from nothing."""
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

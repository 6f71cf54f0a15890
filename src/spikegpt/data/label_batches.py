"""Tokenised rows of different lengths to batches whose position can be kept.

Legend: B rows a batch, T tokens of its longest row, N rows, K labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from .batches import Batches

FEWEST = 8
"""Rows of a batch of very long texts, all processes together."""


class LabelBatches(Batches):
    """Batches of rows of about one length, of about the same number of tokens each, in an order of its own each epoch.

    A batch is ids int64 [B, T] (padded with 0 at the end), lengths int64 [B], and the rows' part of each of `targets`.
    """

    def __init__(
        self, ids: Sequence[np.ndarray], targets: Sequence[np.ndarray], batch_size: int, seed: int,
        *, rank: int = 0, world: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, seed, rank=rank, world=world)
        if any(len(each) != len(ids) for each in targets):
            raise UsageError(f"{len(ids)} rows have {', '.join(str(len(each)) for each in targets)} targets")
        if len(ids) < world:
            raise UsageError(f"{len(ids)} rows cannot be dealt out to {world} processes")
        self._ids, self._targets = list(ids), list(targets)
        self._lengths = np.array([len(each) for each in ids])
        if len(ids) == 0 or self._lengths.min() == 0:
            raise UsageError("every row needs at least one token, and there must be a row")
        self._cuts = self._make_cuts()
        self._epoch, self._plan = -1, []

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return len(self._cuts)

    @property
    def batch_tokens(self) -> float:
        return self.epoch_tokens / self.per_epoch

    @property
    def epoch_tokens(self) -> int:
        return int(self._lengths.sum())

    @property
    def bytes_per_token(self) -> None:
        return None

    def next_batch(self) -> tuple[Tensor, ...]:
        epoch, place = divmod(self.step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self._make_plan(epoch)
        rows = self._plan[place][self.rank :: self.world]
        self.step += 1
        ids, lengths = pad([self._ids[row] for row in rows])
        return ids, lengths, *(torch.from_numpy(np.ascontiguousarray(each[rows])) for each in self._targets)

    def _make_cuts(self) -> list[slice]:
        """Runs of rows in order of length, the same in every epoch."""
        ordered = np.sort(self._lengths)
        budget = self.batch_size * self.world * ordered.mean()
        cuts, begin = [], 0
        while begin < len(ordered):
            end = begin + 1
            most = begin + 4 * self.batch_size * self.world
            while end < min(most, len(ordered)) and (
                (end + 1 - begin) * ordered[end] <= budget or end - begin < max(FEWEST, self.world)
            ):
                end += 1
            if len(ordered) - end < self.world:  # too few to be dealt out
                end = len(ordered)
            cuts.append(slice(begin, end))
            begin = end
        return cuts

    def _make_plan(self, epoch: int) -> list[np.ndarray]:
        generator = np.random.default_rng([self.seed, epoch])
        order = np.lexsort((generator.random(len(self._lengths)), self._lengths))
        return [order[self._cuts[index]] for index in generator.permutation(self.per_epoch)]

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for array in (*self._ids, *self._targets):
            digest.update(np.ascontiguousarray(array).data)
        return {"seed": self.seed, "batch": self.batch_size * self.world, "data": digest.hexdigest()}


def pad(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Rows as ids int64 [B, T], padded with 0 at the end, and lengths int64 [B]."""
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), np.int64)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
    return torch.from_numpy(ids), torch.from_numpy(lengths)

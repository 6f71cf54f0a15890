"""What enters one part of a model, for every batch of a fixed set: kept on disk, mapped when it is read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..convert.stored import as_bytes
from ..errors import UserError
from ..files import write_atomically

DTYPE = torch.bfloat16
"""Has the range of float32, and errors of 2^-9, far below those of events."""


class Residuals:
    """Residuals [batches, B, T, C] in a file, bfloat16; indexing gives a batch [B, T, C] in float32."""

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        size = torch.Size(shape).numel()
        if not path.is_file() or path.stat().st_size != size * DTYPE.itemsize:
            raise UserError(
                f"{path} has not the {size * DTYPE.itemsize:,} bytes expected; delete {path.parent} and begin anew"
            )
        self._all = torch.from_file(str(path), shared=False, size=size, dtype=DTYPE).view(shape)

    def __getitem__(self, batch: int) -> Tensor:
        return self._all[batch].float()


def write_residuals(path: Path, batches: Iterable[Tensor]) -> None:
    """Write batches [B, T, C] one after another; whole or not at all."""

    def fill(staged: Path) -> None:
        with staged.open("wb") as file:
            for batch in batches:
                file.write(as_bytes(batch.to("cpu", DTYPE)).data)

    write_atomically(path, fill)

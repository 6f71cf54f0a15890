"""Events and sums of block 0 for examples/lava/run.py, whose Python is another: python examples/lava/record.py block0.npz

For every matrix `<name>.weight` [inputs, outputs] int8, `<name>.events` [T, inputs] and `<name>.sums` [T, outputs], the
sums as the specification of the integers-only engine computes them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import spikegpt
from spikegpt.engine.fixed.reference import Reference
from spikegpt.engine.packed import read_fixed

TEXT = "It was a dark and stormy night, and the ship lay at anchor in the bay."


class Recorder(Reference):
    """The specification, which keeps what the neurons in front of block 0's matrices say."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.said: dict[str, list[np.ndarray]] = {}

    def events(self, x: np.ndarray, matrix: str) -> np.ndarray:
        count = super().events(x, matrix)
        if matrix.startswith("blocks.0."):
            self.said.setdefault(matrix, []).append(count)
        return count


def main(out: str) -> None:
    model, tokenizer = read_fixed(Path(spikegpt.__file__).parent / "shipped")
    recorder = Recorder(model)
    state = recorder.start()
    for token in tokenizer.encode(TEXT):
        _, state = recorder.step(int(token), state)
    arrays = {}
    for matrix, rows in recorder.said.items():
        events, weights = np.stack(rows), model.integers(matrix)
        sums = events @ weights.astype(np.int64)
        arrays |= {f"{matrix}.weight": weights, f"{matrix}.events": events, f"{matrix}.sums": sums}
    np.savez_compressed(out, **arrays)
    print(f"{out}: {len(recorder.said)} matrices, {len(next(iter(recorder.said.values())))} tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])

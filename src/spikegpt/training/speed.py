"""How fast a run goes, and how fast its machine could."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator


class Stopwatch:
    """Steps per second, pauses left out."""

    def __init__(self, step: int) -> None:
        self._step, self._since = step, time.monotonic()

    def lap(self, step: int) -> float:
        """Steps per second since the last lap."""
        now = time.monotonic()
        speed = (step - self._step) / max(now - self._since, 1e-9)
        self._step, self._since = step, now
        return speed

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count."""
        begun = time.monotonic()
        yield
        self._since += time.monotonic() - begun


def matrix_speed(accelerator: Accelerator) -> float:
    """Operations per second of a matrix product on this device in this precision, the best of three."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(accelerator.mixed_precision), torch.float32)
    on_gpu = accelerator.device.type == "cuda"
    rows, columns = (8192, 4096) if on_gpu else (2048, 512)
    a = torch.ones(rows, columns, device=accelerator.device, dtype=dtype)
    b = torch.ones(columns, rows, device=accelerator.device, dtype=dtype)
    best = math.inf
    for _ in range(4):
        begun = time.perf_counter()
        torch.mm(a, b)
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * rows * rows * columns / best

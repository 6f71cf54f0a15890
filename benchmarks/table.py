"""What every benchmark shares: ceilings of the machine measured in the same run, and a table at the end."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


def matrix_rate(size: int, precision: str = "no", repeats: int = 5) -> float:
    """Operations per second of a size-cubed matrix product, the best of a few."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    return 2 * size**3 / _best(lambda: a @ b, repeats)


def read_rate(megabytes: int = 512, repeats: int = 5) -> float:
    """Bytes per second of a sum over a large float32 array, the best of a few."""
    x = torch.ones(megabytes * 2**18)
    return x.numel() * 4 / _best(x.sum, repeats)


def report(title: str, rows: list[dict[str, Any]], json_file: str | None = None) -> None:
    """Print the rows as a table; with a file, write them there as JSON too."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*(_text(row.get(column, "")) for column in columns))
    Console(width=max(80, 22 * len(columns))).print(table)
    if json_file:
        facts = {"title": title, "threads": torch.get_num_threads(), "machine": platform.machine(), "rows": rows}
        Path(json_file).write_text(json.dumps(facts, indent=1) + "\n")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _best(function: Any, repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)

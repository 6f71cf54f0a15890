"""What every benchmark shares: options, ceilings of the machine measured in the same run, and a table at the end."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich import box
from rich.console import Console
from rich.table import Table

Result = TypeVar("Result")


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file too")
    parser.add_argument("--quick", action="store_true", help="at a toy size: the figures mean nothing")
    return parser


def matrix_rate(size: int, precision: str = "no", repeats: int = 5) -> float:
    """Operations per second of a size-cubed matrix product, the best of a few."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    return 2 * size**3 / min(seconds(lambda: a @ b, repeats))


def read_rate(megabytes: int = 512, repeats: int = 5) -> float:
    """Bytes per second of a sum over a large float32 array, the best of a few."""
    x = torch.ones(megabytes * 2**18)
    return x.numel() * 4 / min(seconds(x.sum, repeats))


def seconds(function: Callable[[], Any], repeats: int) -> list[float]:
    """What each call takes, sorted, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)


def median(values: list[float]) -> float:
    """The middle one of sorted values."""
    return values[len(values) // 2]


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    try:
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except OSError:  # no Linux; getrusage there would also count the parent's
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def alone(function: Callable[..., Result], *args: Any) -> Result:
    """What `function(*args)` returns in a process of its own, whose memory and threads nothing before has touched."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def report(title: str, rows: list[dict[str, Any]], json_file: str | None = None, *, note: str = "") -> None:
    """Print the rows as a table, `note` below; with a file, write them there as JSON too, with where they are from."""
    columns = columns_of(rows)
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*(text(row.get(column, "")) for column in columns))
    console = Console(width=max(80, 20 * len(columns)))
    console.print(table)
    if note:
        console.print(f"{note}\n", markup=False, highlight=False)
    if json_file:
        facts = {"title": title, "note": note, "command": _command(), "date": date.today().isoformat(), **machine()}
        Path(json_file).write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    """Every key, in the order of first sight."""
    return list(dict.fromkeys(key for row in rows for key in row))


def text(value: Any) -> str:
    """A cell: four digits of a float."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu() -> str:
    """The processor's name, with its widest instructions, as PyTorch sees them."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    elif sys.platform == "darwin":
        name = subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def _command() -> str:
    """How to run the same again, its JSON aside."""
    script, *arguments = sys.argv
    if "--json" in arguments:
        at = arguments.index("--json")
        del arguments[at : at + 2]
    return shlex.join(["python", "-m", f"benchmarks.{Path(script).stem}", *arguments])

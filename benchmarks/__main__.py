"""Every benchmark, each in a process of its own, after the tests of what is timed.

python -m benchmarks [NAME ...] [--quick] [--results FOLDER]: tables as they come, one JSON file for each benchmark.
python -m benchmarks --write-docs: docs/benchmarks.md from those files; nothing is run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.document import document

ROOT = Path(__file__).resolve().parent.parent
NAMES = (
    "training", "ops", "streaming", "float_decode", "decode", "writing", "engines", "shared", "fixed", "trained", "startup",
    "load", "parity",
)  # fmt: skip
GATE = ("tests/ops", "tests/model", "tests/engine")
"""Tests of the operators and of the models: a wrong result has no speed."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="at a toy size: the figures mean nothing")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON files"
    )
    parser.add_argument("--write-docs", action="store_true", help="only write docs/benchmarks.md from the JSON files")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if given.write_docs:
        (ROOT / "docs" / "benchmarks.md").write_text(document(given.results, NAMES), encoding="utf-8")
        return 0
    given.results.mkdir(parents=True, exist_ok=True)
    return run_all(given.names or NAMES, given.results, given.quick)


def run_all(names: list[str] | tuple[str, ...], results: Path, quick: bool) -> int:
    """The tests, then the benchmarks; the exit code is 1 if anything failed."""
    columns = SpinnerColumn(finished_text=" "), TextColumn("{task.description}"), TimeElapsedColumn()
    failed = []
    with Progress(*columns) as progress:
        if not step(progress, "tests of what is timed", [sys.executable, "-m", "pytest", "-q", *GATE], shown=False):
            progress.console.print("Nothing is timed while a test fails.")
            return 1
        for name in names:
            command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(results / f"{name}.json")]
            if not step(progress, name, command + ["--quick"] * quick, shown=True):
                failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def step(progress: Progress, name: str, command: list[str], *, shown: bool) -> bool:
    """Run one command on a line of its own; its output comes after it if it is to be `shown`, or fails."""
    task = progress.add_task(name, total=1)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    progress.update(task, completed=1, description=name if done.returncode == 0 else f"{name} FAILED")
    progress.refresh()
    if shown or done.returncode:
        show(progress.console, done.stdout)
    if done.returncode:
        show(progress.console, done.stderr)
    return done.returncode == 0


def show(console: Console, output: str) -> None:
    """A program's output as it is."""
    console.print(output.rstrip(), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())

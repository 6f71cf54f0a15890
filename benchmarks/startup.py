"""How long a person waits: for the help, and for the first token of a process that has just begun.

python -m benchmarks.startup [--json FILE] [--quick]: wall time, beside what Python itself and importing PyTorch take.
The model is the one that ships with the package, or where it is absent an untrained one of the shape `small`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.table import make_parser, median, report

SPIKEGPT = [sys.executable, "-m", "spikegpt"]
GOALS = "Goals: the whole help within 0.3 s, the first token within 3 s."


@contextmanager
def a_model() -> Iterator[list[str]]:
    """Arguments that choose the model."""
    package = find_spec("spikegpt")
    assert package and package.origin
    if (Path(package.origin).parent / "shipped").is_dir():
        yield []
        return
    from spikegpt import SpikeGPT, preset, save_model
    from spikegpt.tokenizer import ByteTokenizer

    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model", SpikeGPT(preset("small", vocab_size=256)), ByteTokenizer())
        yield ["--model", f"{folder}/model"]


def waits(command: list[str]) -> tuple[float, float]:
    """Seconds until the first byte of output, and until the end."""
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout and process.stderr
        process.stdout.read(1)
        first = time.perf_counter() - begun
        process.stdout.read()
        problem = process.stderr.read().decode()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {problem}")
    return first, time.perf_counter() - begun


def row(name: str, command: list[str], runs: int) -> dict[str, Any]:
    """Medians over some runs of a command."""
    firsts, wholes = zip(*(waits(command) for _ in range(runs)), strict=True)
    return {"what": name, "first output, s": median(sorted(firsts)), "whole, s": median(sorted(wholes))}


def main() -> None:
    given = make_parser(__doc__).parse_args()
    with a_model() as model:
        commands = {
            "python": [sys.executable, "-c", ""],
            "spikegpt --help": [*SPIKEGPT, "--help"],
            "import torch": [sys.executable, "-c", "import torch"],
            "spikegpt generate, one token": [*SPIKEGPT, "generate", "It was", "-n", "1", "-t", "0", *model],
        }
        rows = [row(name, command, 1 if given.quick else 9) for name, command in commands.items()]
    shown = "an untrained model" if model else "the shipped model"
    report(f"Starting, with {shown}", rows, given.json, note=GOALS)


if __name__ == "__main__":
    main()

"""Converting and loading a checkpoint shaped as the released 216M: seconds, memory, and the first token.

python -m benchmarks.load [--json FILE] [--preset 216m] [--dtype float32]: random weights; every step in a process of
its own, times beside that of reading the file, memory beside the file's size.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import make_parser, report
from spikegpt.config import PRESETS, ModelConfig, preset
from spikegpt.convert.names import shapes

_STEP = """
import json, sys, time
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
{setup}
before = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) * 1024
start = time.perf_counter()
{body}
print(json.dumps([time.perf_counter() - start, peak() - before]))
"""


def random_checkpoint(config: ModelConfig, dtype: torch.dtype, path: Path) -> None:
    """A state dict of small random weights."""
    torch.manual_seed(0)
    torch.save({name: (torch.randn(shape) * 0.02).to(dtype) for name, shape in shapes(config).items()}, path)


def vocabulary(size: int, path: Path) -> None:
    """A character vocabulary of that many tokens: the time does not depend on what they are."""
    letters = (chr(0x3400 + i + (0x800 if 0x3400 + i >= 0xD800 else 0)) for i in range(size))
    path.write_text(json.dumps(dict(enumerate(letters))), "utf-16")


def step(setup: str, body: str, folder: Path) -> tuple[float, float]:
    """Seconds and bytes at the peak of `body`, in a process of its own after `setup`."""
    code = _STEP.format(setup=setup, body=body)
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True)
    seconds, peak = json.loads(run.stdout.splitlines()[-1])
    return seconds, peak


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="216m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    options = parser.parse_args()
    if options.quick:
        options.preset = "tiny"
    config = preset(options.preset)
    load = "import torch\nfrom spikegpt.checkpoint import load_model\nimport spikegpt.generation"
    steps = {
        "read the file": ("", "f = open('w.pth', 'rb', 0)\nwhile f.read(1 << 20): pass"),
        "convert": ("from spikegpt.convert import convert", "convert('w.pth', 'model', tokenizer='v.json')"),
        "load": (load, "load_model('model')"),
        "load, first token": (load, "load_model('model')(torch.tensor([[1]]))"),
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_checkpoint(config, getattr(torch, options.dtype), folder / "w.pth")
        vocabulary(config.vocab_size, folder / "v.json")
        size = (folder / "w.pth").stat().st_size
        for what, (setup, body) in steps.items():
            seconds, peak = step(setup, body, folder)
            rows.append({"step": what, "seconds": seconds, "peak MB": peak / 1e6, "of the file": peak / size})
            rows[-1]["times reading"] = seconds / rows[0]["seconds"]
    report(f"{options.preset}, {options.dtype}, {size / 1e6:.0f} MB", rows, options.json)


if __name__ == "__main__":
    main()

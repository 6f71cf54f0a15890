"""benchmarks/gpu.py: that the program runs, at toy sizes on the CPU, with PyTorch alone."""

import json
import subprocess
import sys

from places import ROOT

PROGRAM = ROOT / "benchmarks" / "gpu.py"
ALONE = """
import runpy, sys, warnings
warnings.simplefilter("ignore")
for name in ("accelerate", "typer", "rich", "tokenizers", "safetensors", "huggingface_hub", "transformers"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_it_needs_pytorch_alone_and_prints_json_last(tmp_path):
    program = [sys.executable, "-c", ALONE, str(PROGRAM), "--device", "cpu", "--toy"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert {row["operator"] for row in facts["correctness"]} >= {"wkv", "gated_wkv", "lif", "lif_add", "shift_mix"}
    assert all(row["right"] for row in facts["correctness"])
    assert {row["type"] for row in facts["kernels"]} == {"float32", "bfloat16"}
    assert all(row["forward ms"] > 0 and row["backward share"] > 0 for row in facts["kernels"])
    assert {(row["preset"], row["spikes"]) for row in facts["training"]} >= {("46m", "after"), ("216m", "none")}
    assert all(row["tokens/s"] > 0 for row in [*facts["training"], *facts["decoding"]])
    assert {row["preset"] for row in facts["beside the twin"]} == {"46m", "216m"}
    assert "Ceilings" in done.stdout and "Decoding" in done.stdout


def test_a_time_that_is_up_leaves_sections_out():
    program = [
        sys.executable,
        "-W",
        "ignore",
        str(PROGRAM),
        "--device",
        "cpu",
        "--minutes",
        "0",
        "--sections",
        "decoding",
    ]
    program += ["--toy"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["decoding"] == []
    assert "no time left" in done.stdout

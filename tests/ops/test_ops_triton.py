"""The Triton operators: in the interpreter in a process of their own, and without it."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from places import ROOT

from spikegpt import ops
from spikegpt.errors import UserError
from spikegpt.ops import triton

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (pip install triton)")
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, where the kernels run")
HERE = Path(__file__).parent


@needs_triton
def test_kernels_in_the_interpreter():
    """Triton reads the variable when it is imported, so it is set for a process of its own."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "pytest", "-q", "-x", str(HERE / "interpreted_triton.py")]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


@on_cpu
def test_without_a_gpu_it_says_so_in_one_line():
    with pytest.raises(
        UserError, match=r"Triton operators cannot be used: .*(TRITON_INTERPRET=1|not installed)"
    ) as caught:
        ops.lif(torch.zeros(1, 2, 3), backend="triton")
    assert "\n" not in str(caught.value)
    assert isinstance(ops.available()["triton"], str)


def test_absent_triton_is_told(monkeypatch):
    monkeypatch.setattr(triton, "MISSING", "Triton is not installed")
    assert ops.available()["triton"] == "Triton is not installed"
    with pytest.raises(UserError, match="Triton is not installed"):
        ops.relu_squared(torch.zeros(3), backend="triton")


@on_cpu
def test_triton_is_not_imported_where_it_cannot_run():
    script = "import sys, spikegpt.ops; assert 'triton' not in sys.modules or sys.argv[1] == 'torch'"
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, torch; print('triton' in sys.modules)"], capture_output=True
    )
    subprocess.run([sys.executable, "-c", script, "torch" if b"True" in loaded.stdout else ""], check=True, timeout=60)


def test_mixed_devices_are_one_line():
    with pytest.raises(UserError, match=r"tensors are on cpu and on meta; move") as caught:
        ops.wkv(*(torch.zeros(3) for _ in range(2)), *(torch.zeros(1, 2, 3, device=d) for d in ("cpu", "meta")))
    assert "\n" not in str(caught.value)

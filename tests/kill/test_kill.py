"""A few kills and full disks of every job; `make kill KILLS=200` does many."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill -9")
def test_whatever_is_killed_is_whole_and_ends_as_if_unbroken():
    program = Path(__file__).with_name("killing.py")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", program, "--kills", "8", "--full", "4", "--seed", "1"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "8 kills and 4 full disks" in run.stdout

"""A few mutations of every file that is read, and of every public call; `make fuzz MINUTES=10` tries many."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork, and reads memory from /proc")
def test_every_mutation_is_taken_or_refused_in_a_line():
    program = Path(__file__).with_name("fuzzing.py")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", program, "--mutations", "300"], capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stdout + run.stderr
    all_, taken, refused = map(int, re.findall(r"(\d+) (?:mutations|taken|refused)", run.stdout))
    assert all_ >= 290
    assert taken > 20
    assert refused > 100

"""A few mutations of every file that is read, and of every public call; `make fuzz MINUTES=10` tries many."""

import os
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")


def test_every_mutation_is_taken_or_refused_in_a_line(tmp_path, monkeypatch):
    fuzzing = pytest.importorskip("fuzzing")
    monkeypatch.setitem(os.environ, "TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(1)
    counts, faults = fuzzing.fuzz(tmp_path, mutations=300)
    assert not faults, "\n".join(map(str, faults))
    assert sum(counts.values()) >= 290
    assert counts["taken"] > 20
    assert counts["refused"] > 100

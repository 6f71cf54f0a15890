"""A few kills and full disks of every job; `make kill KILLS=200` does many."""

import os

import pytest
import torch

torch.set_num_threads(1)
killing = pytest.importorskip("killing") if hasattr(os, "fork") else None


@pytest.mark.skipif(killing is None, reason="needs fork and kill -9")
def test_whatever_is_killed_is_whole_and_ends_as_if_unbroken(tmp_path):
    counts = killing.kill(killing.jobs(), tmp_path, kills=8, full=4, seed=1)
    assert counts["kills"] == 8
    assert counts["full disks"] == 4

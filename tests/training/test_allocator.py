"""Freed memory is kept for the next request."""

import subprocess
import sys

import pytest

from spikegpt.training.allocator import keep_freed_memory

CODE = """
import resource
import torch
from spikegpt.training.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def ask(times):
    before = faults()
    for _ in range(times):
        torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    return faults() - before

torch.set_num_threads(1)
first = ask(4)
assert keep_freed_memory()
ask(16)  # the heap grows to what is needed
print(first, ask(4))
"""


def test_large_blocks_are_not_mapped_anew():
    if not keep_freed_memory():
        pytest.skip("the C library of this machine is not glibc")
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 10

"""What the operators' tests share."""

import contextlib

import pytest
import torch

from spikegpt.ops import native
from spikegpt.ops.native import library

needs_native = pytest.mark.skipif(native.MISSING is not None, reason=f"native operators: {native.MISSING}")

LENGTHS_AND_WIDTHS = [(1, 67), (2, 17), (63, 1), (63, 67), (64, 3), (65, 130), (1000, 17)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def run(function, inputs, cotangents, dtype):
    """Outputs, then the gradient of every input, computed in `dtype`."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    outputs = function(*leaves)
    gradients = torch.autograd.grad(outputs, leaves, [g.to(dtype) for g in cotangents])
    return [o.detach() for o in outputs], list(gradients)


def assert_close(actual, expected, tolerance):
    """Largest difference at most `tolerance` of the largest expected value."""
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    scale = expected.abs().max().clamp(min=1e-30)
    assert ((actual.double() - expected.double()).abs().max() / scale).item() <= tolerance


def assert_same_bits(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))


@contextlib.contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_every_instruction_set(function):
    """Results of `function` on each instruction set that this machine can run."""
    results = []
    for name in library._native.instruction_sets():
        before = library._native.use(name)
        try:
            results.append(function())
        finally:
            library._native.use(before)
    return results

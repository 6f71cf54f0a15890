"""What holds for every test."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def new_memory_is_nan():
    """Whatever is read before it is written becomes NaN, or the largest integer, instead of a lucky zero."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)

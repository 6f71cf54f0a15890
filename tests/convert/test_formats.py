"""A tiny RWKV-4 in every format that is read gives the logits of the `rwkv` package. See tests/data/README.md."""

import numpy as np
import pytest
import torch
from places import DATA

from spikegpt.checkpoint import load_model
from spikegpt.convert import convert

FILES = DATA / "rwkv4"


@pytest.fixture(scope="module")
def expected():
    with np.load(FILES / "expected.npz") as arrays:
        return torch.from_numpy(arrays["ids"])[None], torch.from_numpy(arrays["logits"])


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize(
    ("source", "tolerance"),
    [
        ("rwkv-4.pth", 1e-5),
        ("rwkv-4-float32.bin", 1e-5),
        ("rwkv-4-float16.bin", 2e-3),
        ("transformers/safetensors", 1e-5),
        ("transformers/sharded", 1e-5),
        ("transformers/pickled", 1e-5),
    ],
)
@torch.no_grad()
def test_every_format_gives_the_same_logits(tmp_path, expected, source, tolerance, backend):
    ids, logits = expected
    convert(FILES / source, tmp_path / "model", kind="rwkv4" if source.endswith("pth") else None)
    model = load_model(tmp_path / "model", backend=backend)
    found, state = model(ids)
    assert (found[0] - logits).norm() / logits.norm() < tolerance
    state = None
    for at, token in enumerate(ids[0]):
        step, state = model(token.view(1, 1), state)
        assert (step[0, 0] - logits[at]).norm() / logits[at].norm() < tolerance

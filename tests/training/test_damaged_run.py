"""A damaged checkpoint is refused in one line before a step is taken, whatever it says."""

import json
import shutil
from functools import reduce

import pytest
import torch
import training
from safetensors.torch import load_file, save_file

from spikegpt.checkpoint import latest_checkpoint
from spikegpt.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return training.make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def begun(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("begun") / "run"
    training.run(out, corpus, train={"steps": 2, "save_every": 1, "keep": 1})
    (out / "model.safetensors").unlink()
    return out


@pytest.fixture
def run(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "run")
    return tmp_path / "run"


def refused(run, corpus, pattern):
    with pytest.raises(UserError, match=pattern) as caught:
        training.run(run, corpus, resume=True, train={"steps": 2, "save_every": 1, "keep": 1})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


VALUES = {
    "step": ["2", None, 2.0, True, 10**18, -2, 3],
    "run": [None, [], {}],
    "run.train": [None, [1], {"steps": "many"}, {"no_such": 1}, {"steps": -1}],
    "run.processes": [None, 0, -1, "1", True],
    "run.data": [None, {"train": {"hash": "other"}}],
    "windows": [None, 3, {}],
    "windows.step": ["1", -1, None, 1.5],
    "windows.data": ["other"],
    "losses": [None, ["a"], {}],
    "last": [None, 1],
    "scaler": ["x"],
    "format": [None, 2, "1"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in VALUES.items() for value in values])
def test_values_that_are_none(run, corpus, name, value):
    path = latest_checkpoint(run) / "training.json"
    values = json.loads(path.read_text())
    *outer, last = name.split(".")
    reduce(dict.__getitem__, outer, values)[last] = value
    path.write_text(json.dumps(values))
    refused(run, corpus, "step-00000002|cannot resume")


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff", b"[" * 10**5, b'{"step": 2' + b"0" * 10**5 + b"}"])
def test_text_that_is_none(run, corpus, text):
    (latest_checkpoint(run) / "training.json").write_bytes(text)
    refused(run, corpus, r"training\.json is no JSON")


def change(name, value):
    return lambda tensors: tensors | {name: value}


TENSORS = {
    "no random state": (lambda tensors: {n: t for n, t in tensors.items() if n != "random.cpu"}, "has no random state"),
    "a short one": (change("random.cpu", torch.zeros(1, 7, dtype=torch.uint8)), "has no random state"),
    "of floats": (change("random.cpu", torch.zeros(1, 5056)), "has no random state"),
    "no optimiser": (
        lambda tensors: {"random.cpu": tensors["random.cpu"]},
        "lacks the optimiser's state of emb.weight",
    ),
    "one missing": (
        lambda tensors: {n: t for n, t in tensors.items() if n != "optimizer.head.weight.exp_avg"},
        "lacks the optimiser's state of head.weight",
    ),
    "another shape": (
        change("optimizer.head.weight.exp_avg", torch.zeros(1, 32)),
        r"exp_avg is \[1, 32\], which is no",
    ),
    "integers": (
        change("optimizer.head.weight.exp_avg", torch.zeros(256, 32, dtype=torch.int8)),
        "no state of this model",
    ),
    "another model's": (change("optimizer.tail.weight.exp_avg", torch.zeros(3)), "no state of this model"),
}


@pytest.mark.parametrize(("edit", "pattern"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit(run, corpus, edit, pattern):
    path = latest_checkpoint(run) / "training.safetensors"
    save_file(edit(load_file(path)), path)
    refused(run, corpus, pattern)

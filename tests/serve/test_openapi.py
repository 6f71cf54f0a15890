"""The description of the interface is what the server answers; schemathesis tries it where it is installed."""

import importlib.util
import re
import subprocess
import sys

import pytest
from serving import Running
from tiny import awake

from spikegpt import load
from spikegpt.config import ModelConfig
from spikegpt.engine import EventModel, run
from spikegpt.serve.openapi import below
from spikegpt.task import TaskConfig
from spikegpt.tokenizer import ByteTokenizer

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}")


def small(task: TaskConfig | None = None) -> EventModel:
    model = awake(ModelConfig(vocab_size=256, n_layer=1, n_embd=32, spikes="before", task=task))
    model.tokenizer = ByteTokenizer()
    return EventModel.of(model, threads=1)


@pytest.mark.parametrize("limit", [1, 2, 10, 11, 100, 256, 4096, 4097, 50277])
def test_numbers_below_a_limit(limit: int) -> None:
    pattern = re.compile(f"^({below(limit)})$")
    near = [*range(200), *range(max(0, limit - 200), limit + 200), 10**6]
    assert all(bool(pattern.match(str(number))) == (number < limit) for number in near)
    assert not pattern.match("007") and not pattern.match("")


def test_only_what_is_served_is_described() -> None:
    task = TaskConfig(labels=("bad", "good"))
    paths = {}
    for name, model, settings in (
        ("plain", load(engine="event", threads=1), {}),
        ("chat", small(), {"chat_template": "plain"}),
        ("labels", small(task), {}),
    ):
        with Running([model], **settings) as server:
            description = server.ask("GET", "/openapi.json")[1]
            paths[name] = set(description["paths"])
            assert server.ask("GET", "/v1/chat/completions")[0] == 405
            if name == "plain":
                prompt = description["components"]["schemas"]["Completion"]["properties"]["prompt"]
                assert prompt["anyOf"][2]["items"]["exclusiveMaximum"] == 4096
    assert paths["chat"] - paths["plain"] == {"/v1/chat/completions"}
    assert "/classify" in paths["labels"] - paths["plain"] and "/v1/completions" not in paths["labels"]
    inputs = description["components"]["schemas"]["Classify"]["properties"]["input"]["anyOf"]
    assert len(inputs) == 2  # no pairs, for this one reads single texts


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed")
@pytest.mark.parametrize("kind", ["writes", "labels"])
def test_schemathesis_finds_nothing(kind: str, tmp_path) -> None:
    """A few cases of every route, with all checks; docs/serving.md has the command that tries many."""
    model = small(TaskConfig(labels=("bad", "good"))) if kind == "labels" else small()
    with Running([model], chat_template="plain", max_request_tokens=1000) as server:
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", "all",
             "--max-examples", "5", "--continue-on-failure", "--seed", "1", "--phases", "examples,coverage,fuzzing",
             "--no-color"],
            capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert server.ask("GET", "/health")[0] == 200

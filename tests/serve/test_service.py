"""Which engine serves a model."""

import asyncio
import subprocess
import sys

import pytest
from safetensors.numpy import load as parse
from safetensors.numpy import save as unparse
from serving import Running

from spikegpt.engine import EventModel, FixedEventModel, run
from spikegpt.engine.packed import pack
from spikegpt.generation.decode import generate
from spikegpt.loading import SHIPPED
from spikegpt.serve.settings import Settings

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}")

PROMPT = "It was a dark night, and"


def served(name, **settings):
    """The model that a server of this name would run."""
    from spikegpt.serve.metrics import Metrics
    from spikegpt.serve.service import Service

    async def opened() -> Service:
        return Service.open(name, Settings(workers=1, **settings), asyncio.get_running_loop(), Metrics())

    service = asyncio.run(opened())
    service.close()
    return service.model


@pytest.fixture(scope="module")
def integers(tmp_path_factory) -> FixedEventModel:
    packed = str(pack(SHIPPED, tmp_path_factory.mktemp("models") / "packed", fixed=True))
    assert isinstance(served(packed, engine="event"), EventModel)
    model = served(packed)
    assert isinstance(model, FixedEventModel)
    return model


def test_the_engine_is_the_one_asked_for_or_packed_for(integers) -> None:
    assert isinstance(served(None), EventModel)
    assert isinstance(served(None, engine="fixed"), FixedEventModel)
    done = subprocess.run(
        [sys.executable, "-m", "spikegpt", "serve", "--engine", "float"], capture_output=True, text=True, check=False
    )
    assert done.returncode and "--engine float cannot be served; choose auto, event or fixed" in done.stderr


def test_integers_only_write_over_http_what_they_write_alone(integers) -> None:
    how = dict(seed=1, max_tokens=20, temperature=0.8)
    expected = "".join(generate(integers, PROMPT, **how))
    with Running([integers]) as server:
        for more in ({}, {"dense": True}, {"n": 3}):
            assert server.complete(PROMPT, **how, **more)["choices"][0]["text"] == expected
        session = server.ask("POST", "/v1/sessions", {"prompt": PROMPT})[1]["id"]
        assert server.complete("", session=session, **how)["choices"][0]["text"] == expected


def test_a_state_that_no_format_holds_is_refused(integers) -> None:
    with Running([integers]) as server:
        session = server.ask("POST", "/v1/sessions", {"prompt": PROMPT})[1]["id"]
        path = f"/v1/sessions/{session}/state"
        file = server.ask("GET", path)[1]
        assert server.ask("PUT", path, file)[0] == 200
        for name, place in (("blocks.0.att.wkv", (0, 2, 7)), ("blocks.3.ffn.shift", (0, 7))):
            for value in (-(2**31), 2**23 if "wkv" in name else 2**15):
                tensors = {key: array.copy() for key, array in parse(file).items()}
                tensors[name][place] = value
                status, answer, _ = server.ask("PUT", path, unparse(tensors))
                assert status == 400 and "too large for its format" in answer["error"]["message"], (name, value)

"""Two replicas on Ray Serve that share their sessions in a Redis: one text, whoever writes it."""

import http.client
import json
import shutil
import socket
import subprocess
from contextlib import closing

import pytest
from serving import wait_for

from spikegpt import load
from spikegpt.engine import run
from spikegpt.generation.decode import generate

pytest.importorskip("fastapi")
pytest.importorskip("redis")
ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'spikegpt[ray]'")
REDIS = shutil.which("redis-server")
pytestmark = [
    pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}"),
    pytest.mark.skipif(REDIS is None, reason="needs redis-server"),
    pytest.mark.filterwarnings("ignore"),  # of ray's own
]

PROMPT = "It was a dark night, and"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port: int, method: str, path: str, body=None) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"content-type": "application/json"} if data else {})
        response = connection.getresponse()
        return response.status, response.read()


@pytest.fixture(scope="module")
def front():
    """The port of Ray's proxy."""
    from ray import serve

    from spikegpt.serve.ray_serve import deploy

    redis, port = free_port(), free_port()
    store = subprocess.Popen(
        [REDIS, "--port", str(redis), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL
    )
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(
        deploy({"replicas": 2, "cpus": 0.5, "redis": f"redis://127.0.0.1:{redis}/0"}), name="spikegpt", route_prefix="/"
    )
    wait_for(lambda: ask(port, "GET", "/health")[0] == 200, 60)
    yield port
    serve.shutdown()
    ray.shutdown()
    store.terminate()
    store.wait()


def test_sessions_hop_between_replicas(front) -> None:
    expected = "".join(generate(load(), PROMPT, temperature=0, max_tokens=60))
    status, session = ask(front, "POST", "/v1/sessions", {"prompt": PROMPT})
    assert status == 201
    text = ""
    for turn in range(12):
        body = {"session": json.loads(session)["id"], "max_tokens": 5, "temperature": 0, "stream": turn % 2 == 1}
        status, answer = ask(front, "POST", "/v1/completions", body)
        assert status == 200, answer
        if body["stream"]:
            events = [json.loads(line[6:]) for line in answer.decode().split("\n\n")[:-2]]
            text += "".join(event["choices"][0]["text"] for event in events)
        else:
            text += json.loads(answer)["choices"][0]["text"]
    assert text == expected
    written = set()  # by each replica
    for _ in range(60):
        lines = ask(front, "GET", "/metrics")[1].decode().splitlines()
        written |= {float(line.split()[1]) for line in lines if line.startswith("spikegpt_completion_tokens_total")}
    assert written == {30.0} or (len(written) == 2 and min(written) > 0 and sum(written) == 60)

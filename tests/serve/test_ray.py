"""Two replicas on Ray Serve that share their sessions in a Redis: one text, whoever writes it."""

import pytest
from serving import REDIS, ask, events, free_port, redis_running, text_of, wait_for

from spikegpt import load
from spikegpt.engine import run
from spikegpt.generation.decode import generate

pytest.importorskip("fastapi")
pytest.importorskip("redis")
ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'spikegpt[ray]'")
pytestmark = [
    pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}"),
    pytest.mark.skipif(REDIS is None, reason="needs redis-server"),
    pytest.mark.filterwarnings("ignore"),  # of ray's own
]

PROMPT = "It was a dark night, and"


@pytest.fixture(scope="module")
def front():
    """The port of Ray's proxy."""
    from ray import serve

    from spikegpt.serve.ray_serve import deploy

    port = free_port()
    with redis_running() as redis:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(deploy({"replicas": 2, "cpus": 0.5, "redis": redis}), name="spikegpt", route_prefix="/")
        wait_for(lambda: ask(port, "GET", "/health")[0] == 200, 60)
        yield port
        serve.shutdown()
        ray.shutdown()


def test_sessions_hop_between_replicas(front) -> None:
    expected = "".join(generate(load(), PROMPT, temperature=0, max_tokens=60))
    status, session, _ = ask(front, "POST", "/v1/sessions", {"prompt": PROMPT})
    assert status == 201
    text = ""
    for turn in range(12):
        body = {"session": session["id"], "max_tokens": 5, "temperature": 0, "stream": turn % 2 == 1}
        status, answer, _ = ask(front, "POST", "/v1/completions", body)
        assert status == 200, answer
        text += text_of(events(answer) if body["stream"] else [answer])
    assert text == expected
    written = set()  # by each replica
    for _ in range(60):
        lines = ask(front, "GET", "/metrics")[1].decode().splitlines()
        written |= {float(line.split()[1]) for line in lines if line.startswith("spikegpt_completion_tokens_total")}
    assert written == {30.0} or (len(written) == 2 and min(written) > 0 and sum(written) == 60)

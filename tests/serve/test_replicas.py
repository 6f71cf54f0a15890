"""Two servers behind nginx that share their sessions in a Redis: one text, whoever writes it, and one of them killed."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import closing

import pytest
from places import ROOT
from serving import REDIS, ask, free_port, listens, redis_running, wait_for

from spikegpt import load
from spikegpt.engine import run
from spikegpt.generation.decode import generate

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("redis")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = [
    pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}"),
    pytest.mark.skipif(NGINX is None or REDIS is None, reason="needs nginx and redis-server"),
]

PROMPT = "It was a dark night, and"


@pytest.fixture
def replicas(tmp_path):
    """The port of nginx, the servers behind it, and their ports."""
    front, ports = free_port(), [free_port(), free_port()]
    settings = (ROOT / "docs/nginx.conf").read_text(encoding="utf-8")
    for old, new in zip((8001, 8002, 8000), (*ports, front), strict=True):
        settings = settings.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    folder = tmp_path / "nginx"
    folder.mkdir()
    settings = re.sub(r"http \{", "http {\n" + "\n".join(
        f"  {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    ), settings)  # fmt: skip
    (folder / "nginx.conf").write_text(f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\n{settings}")
    with redis_running() as redis:
        servers = [
            subprocess.Popen(
                [sys.executable, "-m", "spikegpt", "serve", "--port", str(port), "--workers", "1", "--redis", redis],
                stdout=subprocess.DEVNULL,
            )
            for port in ports
        ]
        for port in ports:
            wait_for(lambda port=port: _healthy(port), 120)
        proxy = subprocess.Popen(
            [NGINX, "-c", str(folder / "nginx.conf"), "-p", str(folder)], stderr=subprocess.DEVNULL
        )
        wait_for(lambda: listens(front))
        yield front, servers, ports
        for process in (proxy, *servers):
            process.terminate()
            process.wait(20)


def _healthy(port: int) -> bool:
    try:
        return ask(port, "GET", "/health")[0] == 200
    except OSError:
        return False


def test_sessions_hop_and_outlive_a_server(replicas) -> None:
    front, servers, ports = replicas
    expected = "".join(generate(load(), PROMPT, temperature=0, max_tokens=48))
    status, session, _ = ask(front, "POST", "/v1/sessions", {"prompt": PROMPT})
    assert status == 201
    text = ""

    def write(port: int, tokens: int) -> None:
        nonlocal text
        body = {"session": session["id"], "max_tokens": tokens, "temperature": 0}
        status, answer, _ = ask(port, "POST", "/v1/completions", body)
        assert status == 200, answer
        text += answer["choices"][0]["text"]

    for turn in range(6):  # in turns, and by way of the front
        write((*ports, front)[turn % 3], 4)
    assert expected.startswith(text)
    with closing(http.client.HTTPConnection("127.0.0.1", ports[0], timeout=30)) as connection:
        body = {"prompt": "a", "max_tokens": 100_000, "ignore_eos": True, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        response.read(300)
        os.kill(servers[0].pid, signal.SIGKILL)
        with pytest.raises((http.client.IncompleteRead, OSError)):  # its running stream fails, and not silently
            while response.read(65536):
                pass
    servers[0].wait(10)
    for _ in range(6):
        write(front, 4)
    assert text == expected

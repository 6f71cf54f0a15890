"""What stands before every route."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing

import pytest
from serving import Running, free_port, wait_for

from spikegpt import load
from spikegpt.engine import EventModel, run
from spikegpt.errors import UsageError
from spikegpt.serve.main import check
from spikegpt.serve.security import OPEN
from spikegpt.serve.settings import Settings

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}")

KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def model() -> EventModel:
    return load(engine="event", threads=1)


@pytest.fixture(scope="module")
def locked(model):
    with Running([model], key=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def server(model):
    with Running([model], read_timeout=1.0, max_body=10_000) as running:
        yield running


def routes(server) -> list[tuple[str, str]]:
    schema = server.app.openapi()
    found = [(method.upper(), path) for path, methods in schema["paths"].items() for method in methods]
    return [(method, path.replace("{id}", "0" * 32)) for method, path in found] + [
        ("GET", "/openapi.json"),
        ("GET", "/nothing"),
    ]


def test_every_path_but_the_open_ones_needs_the_key(locked) -> None:
    for method, path in routes(locked):
        body = None if method in ("GET", "DELETE") else {}
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY[:-1]}):
            status, _, _ = locked.ask(method, path, body, **headers)
            assert status == 401 or (method, path) == ("GET", "/health"), (method, path, status)
        assert locked.ask(method, path, body, authorization=f"Bearer {KEY}")[0] != 401
    assert OPEN == ("/health", "/")
    assert locked.ask("GET", "/")[0] == 200
    assert KEY not in repr(locked.settings)


def test_only_the_loopbacks_names_are_answered(server) -> None:
    for host, status in {
        "127.0.0.1": 200, f"localhost:{server.port}": 200, "[::1]:80": 200, "LOCALHOST": 200, "evil.example": 403,
        "127.0.0.1.evil.example": 403, "": 403, "localhost.": 403,
    }.items():  # fmt: skip
        assert server.ask("GET", "/health", host=host)[0] == status, host


def test_other_pages_cannot_ask(server, model) -> None:
    _, _, response = server.ask("GET", "/v1/models", origin="http://evil.example")
    assert "access-control-allow-origin" not in response.headers
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        with closing(server.connect()) as connection:
            connection.request("POST", "/v1/completions", b'{"prompt": "a"}', {"content-type": kind})
            response = connection.getresponse()
            assert response.status == 415 and response.read(), kind
    with Running([model], origins=("http://friend.example",)) as friendly:
        _, _, response = friendly.ask("GET", "/v1/models", origin="http://friend.example")
        assert response.headers["access-control-allow-origin"] == "http://friend.example"
        assert "access-control-allow-credentials" not in response.headers
        _, _, response = friendly.ask("GET", "/v1/models", origin="http://evil.example")
        assert "access-control-allow-origin" not in response.headers


def test_answers_carry_what_browsers_heed(server) -> None:
    for path in ("/", "/health", "/nothing", "/v1/models"):
        headers = server.ask("GET", path)[2].headers
        assert (
            "default-src 'self'" in headers["content-security-policy"]
            and "frame-ancestors 'none'" in headers["content-security-policy"]
        )
        assert headers["x-content-type-options"] == "nosniff"


def test_a_wrong_method_is_told_the_right_ones(server) -> None:
    for path, methods in {
        f"/v1/sessions/{'0' * 32}": "DELETE, GET", f"/v1/sessions/{'0' * 32}/state": "GET, PUT", "/v1/completions": "POST",
        "/": "GET",
    }.items():  # fmt: skip
        status, _, response = server.ask("PATCH", path)
        assert status == 405 and response.headers.get_all("allow") == [methods], path


def test_bodies_are_bounded(server) -> None:
    assert server.ask("POST", "/v1/completions", {"prompt": "a" * 20_000})[0] == 413

    def chunks():
        for _ in range(100):
            yield b"x" * 1000

    with closing(server.connect()) as connection:
        connection.request(
            "POST", "/v1/completions", chunks(), {"content-type": "application/json"}, encode_chunked=True
        )
        response = connection.getresponse()
        assert response.status == 413
        response.close()


def raw(server, data: bytes, *, drip: float = 0.0, seconds: float = 6.0) -> tuple[bytes, float]:
    """What comes back on a raw connection until it is closed, and after how long."""
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        connection.sendall(data)
        connection.settimeout(drip or seconds)
        answer = b""
        while time.monotonic() - begun < seconds:
            try:
                part = connection.recv(65536)
            except TimeoutError:
                try:
                    connection.sendall(b"x")
                except OSError:
                    break
                continue
            except OSError:
                break
            if not part:
                break
            answer += part
    return answer, time.monotonic() - begun


def test_headers_are_bounded_and_nobody_is_waited_for(server) -> None:
    answer, _ = raw(server, b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 40_000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 4")
    for begun in (
        b"", b"GET /health HTTP/1.1\r\nhost: lo",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{",
    ):  # fmt: skip
        for drip in (0.0, 0.2):
            answer, seconds = raw(server, begun, drip=drip)
            assert seconds < 4, (begun, drip)


def test_a_connection_serves_more_than_one_request(server) -> None:
    with closing(server.connect()) as connection:
        for _ in range(5):
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b'{"status":"ok"}'


def test_a_long_answer_is_not_cut_by_the_time_for_requests(server) -> None:
    chunks = server.stream("a", max_tokens=30_000, ignore_eos=True, stream_interval=100)
    assert sum(len(chunk["choices"]) for chunk in chunks) >= 300


def test_too_many_connections_are_refused(model) -> None:
    with Running([model], max_connections=4) as server:
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
        wait_for(lambda: server.ask("GET", "/health")[0] == 503)
        for each in held:
            each.close()
        wait_for(lambda: server.ask("GET", "/health")[0] == 200)


def test_others_are_let_in_only_with_a_key_or_by_name() -> None:
    check(Settings(), False)
    check(Settings(host="0.0.0.0", key=KEY), False)
    check(Settings(host="0.0.0.0"), True)
    for host in ("0.0.0.0", "::", "192.168.0.1"):
        with pytest.raises(UsageError, match="--key-file"):
            check(Settings(host=host), False)


def test_chat_needs_a_template(model, server, tmp_path) -> None:
    messages = {"messages": [{"role": "user", "content": "It was"}, {"role": "user", "content": "a dark night"}]}
    status, answer, _ = server.ask("POST", "/v1/chat/completions", messages)
    assert (
        status == 400
        and "--chat-template" in answer["error"]["message"]
        and "/v1/completions" in answer["error"]["message"]
    )
    with Running([model], chat_template="plain") as plain:
        status, answer, _ = plain.ask("POST", "/v1/chat/completions", messages | {"seed": 1, "max_tokens": 8})
        expected = plain.complete("It was\n\na dark night", seed=1, max_tokens=8)["choices"][0]["text"]
        assert answer["choices"][0]["message"]["content"] == expected and answer["object"] == "chat.completion"
    source = "{% for m in messages %}{{ m.content }};{% endfor %}"
    with Running([model], chat_template=source) as templated:
        answer = templated.ask("POST", "/v1/chat/completions", messages | {"seed": 1, "max_tokens": 8})[1]
        expected = templated.complete("It was;a dark night;", seed=1, max_tokens=8)["choices"][0]["text"]
        assert answer["choices"][0]["message"]["content"] == expected
    with Running([model], chat_template="{{ messages.__class__.__mro__ }}") as sandboxed:
        assert sandboxed.ask("POST", "/v1/chat/completions", messages)[0] == 400


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_command_begins_at_once_and_ends_its_streams(tmp_path) -> None:
    """`/health` answers before the model is there; a signal ends running streams with a last chunk, and the exit is clean."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "spikegpt", "serve", "--port", str(port), "--workers", "1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert re.match(rf"http://127\.0\.0\.1:{port}/", process.stdout.readline())
    seen: set[int] = set()

    def healthy() -> bool:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", "/health")
                response = connection.getresponse()
                response.read()
                seen.add(response.status)
        except OSError:
            return False
        return 200 in seen

    wait_for(healthy, 90)
    assert seen == {503, 200}
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        body = json.dumps(
            {"prompt": "a", "max_tokens": 1_000_000, "ignore_eos": True, "stream": True, "stream_interval": 50}
        )
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}".encode()
        )
        answer = connection.recv(4096)
        process.send_signal(signal.SIGTERM)
        while part := connection.recv(65536):
            answer += part
    assert b"[DONE]" in answer[-200:] and b'"finish_reason": "length"' in answer[-700:]
    assert process.wait(20) == 0
    process.stdout.close()

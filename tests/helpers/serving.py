"""A server in a thread of the test's own process, a Redis beside it, and requests to any."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from spikegpt.serve.app import make_app
from spikegpt.serve.protocol import make_server
from spikegpt.serve.settings import Settings

REDIS = shutil.which("redis-server")


class Running:
    """`models` behind HTTP on a port of the loopback."""

    def __init__(self, models: list[Any], **settings: Any) -> None:
        from spikegpt.serve.service import Service

        self.settings = Settings(**settings)

        def load(loop: asyncio.AbstractEventLoop) -> Service:
            return Service(models, self.settings, loop, self.app.state.metrics)

        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = make_app(self.settings, load, lambda: None)
        self._server = make_server(
            self.app, "127.0.0.1", self.port, read_timeout=self.settings.read_timeout,
            max_connections=self.settings.max_connections, on_exit=lambda: None,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> Running:
        self._thread.start()
        wait_for(lambda: self.app.state.service is not None or self.app.state.failure is not None)
        if self.app.state.failure is not None:
            raise self.app.state.failure
        wait_for(lambda: self._server.started)  # it listens only after the model's thread was begun
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.should_exit = True
        self._thread.join(15)
        assert not self._thread.is_alive()

    @property
    def service(self) -> Any:
        return self.app.state.service

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, http.client.HTTPResponse]:
        """One request, as `ask`."""
        return ask(self.port, method, path, body, **headers)

    def complete(self, prompt: Any, **fields: Any) -> Any:
        """The answer to a completion that succeeds."""
        status, answer, _ = self.ask("POST", "/v1/completions", {"prompt": prompt, **fields})
        assert status == 200, answer
        return answer

    def stream(self, prompt: Any, **fields: Any) -> list[Any]:
        """The events of a streamed completion, without the last, which must be [DONE]."""
        status, answer, response = self.ask("POST", "/v1/completions", {"prompt": prompt, "stream": True, **fields})
        assert status == 200 and response.headers["content-type"].startswith("text/event-stream"), answer
        return events(answer)

    def idle(self) -> bool:
        return all(worker.load == 0 and worker.running == 0 for worker in self.service.workers)


def ask(
    port: int, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any, http.client.HTTPResponse]:
    """Status, body (JSON as values) and response of one request."""
    data, kind = (
        (body, "application/octet-stream") if isinstance(body, bytes) else (json.dumps(body), "application/json")
    )
    sent = {} if body is None else {"content-type": kind}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, None if body is None else data, sent)
        response = connection.getresponse()
        answer = response.read()
    if "json" in response.headers.get("content-type", ""):
        return response.status, json.loads(answer), response
    return response.status, answer, response


def free_port() -> int:
    """A port of the loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port: int) -> bool:
    """Whether somebody does on this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def redis_running() -> Iterator[str]:
    """The URL of a Redis that keeps nothing."""
    port = free_port()
    command = [str(REDIS), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: listens(port))
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(20)


def events(data: bytes) -> list[Any]:
    """The values of server-sent events."""
    lines = [line for line in data.decode().split("\n\n") if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines[:-1]]


def text_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index)


def wait_for(condition: Any, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.005)

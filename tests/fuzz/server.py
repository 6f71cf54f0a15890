"""Requests and states for the server, mutated; nothing but an answer of its own may come back."""

from __future__ import annotations

import http.client
import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "helpers"))

ANSWERS = {200, 201, 400, 404, 405, 409, 413, 415, 429, 431}
_REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/completions", {"prompt": "The cat", "max_tokens": 2, "n": 2, "stop": ["a"], "logit_bias": {"1": 2}, "logprobs": 1}),
    ("/v1/completions", {"prompt": [[1, 2], [3]], "max_tokens": 1, "echo": True, "stream": True, "spikes": "sizes"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "max_tokens": 1}),
    ("/v1/sessions", {"prompt": "a"}),
    ("/tokenize", {"prompt": "a", "return_token_strs": True}),
    ("/detokenize", {"tokens": [1, 2]}),
    ("/classify", {"input": ["a"]}),
)  # fmt: skip


class Served:
    """A server in this process, one connection to it, and a session."""

    def __init__(self, model: Any) -> None:
        from serving import Running

        self.server = Running([model], chat_template="plain", max_request_tokens=50, session_memory=1 << 20).__enter__()
        self._connection = self.server.connect(timeout=60)
        _, answer = self._ask("POST", "/v1/sessions", b'{"prompt": "a"}', "application/json")
        self.state_path = f"/v1/sessions/{json.loads(answer)['id']}/state"
        _, self.state = self._ask("GET", self.state_path, b"", "application/json")

    def attack(self, random: random.Random) -> None:
        """One mutated request; the server must answer, and be there afterwards."""
        if random.randrange(2):
            method, path, data, kind = "PUT", self.state_path, self.state, "application/octet-stream"
        else:
            path, body = random.choice(_REQUESTS)
            method, data, kind = "POST", json.dumps(body).encode(), "application/json"
        sent = mutated(data, random)
        status, answer = self._ask(method, path, sent, kind)
        assert status in ANSWERS, f"{method} {path} answered {status}: {answer[:200]!r}"
        if status >= 400:
            assert "\n" not in json.loads(answer)["error"]["message"], "an error of several lines"

    def _ask(self, method: str, path: str, data: bytes, kind: str) -> tuple[int, bytes]:
        try:
            self._connection.request(method, path, data or None, {"content-type": kind})
            response = self._connection.getresponse()
            return response.status, response.read()
        except (http.client.HTTPException, OSError):
            self._connection.close()  # the server may close a connection, but then answers on another
            self._connection = self.server.connect(timeout=60)
            self._connection.request("GET", "/health")
            response = self._connection.getresponse()
            return response.status, response.read()


def mutated(data: bytes, random: random.Random) -> bytes:
    """Bytes changed, cut, doubled or put in, mostly near the beginning, where the headers are."""
    made = bytearray(data)
    for _ in range(random.randint(1, 5)):
        at = random.randrange(len(made) if random.random() < 0.3 else min(len(made), 400)) if made else 0
        match random.randrange(5):
            case 0 if made:
                made[at] = random.randrange(256)
            case 1:
                del made[at : at + random.randint(1, 30)]
            case 2:
                made[at:at] = random.choice(
                    (b"1e999", b"null", b"-1", b'"', b"[" * 200, b"99999999999999999999", b"\\ud800")
                )
            case 3:
                made[at:at] = made[at : at + random.randint(1, 40)]
            case _:
                made[at:at] = random.randbytes(random.randint(1, 8))
    return bytes(made)

"""The server for minutes under everything at once; its memory must not grow.

python -m benchmarks.soak [--minutes 10] [--json FILE]: eight clients in this process stream, ask for whole texts, leave in
the middle, send what must be refused, and write sessions on, against `spikegpt serve`. A row a minute; the exit code is 1 if an
answer was not the intended one, or if resident memory after the last minute is over 5% above that after the second.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from typing import Any

from benchmarks.serve import PROMPT, Server
from benchmarks.table import make_parser, report

CLIENTS = 8
GROWTH = 1.05


class Client(threading.Thread):
    """Asks one thing after the other until it is told to stop."""

    def __init__(self, port: int, seed: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._port, self._random, self._over = port, random.Random(seed), over
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []

    def run(self) -> None:
        kinds = [self._stream, self._whole, self._leave, self._refused, self._session]
        while not self._over.is_set():
            kind = self._random.choice(kinds)
            try:
                wrong = kind()
            except (OSError, http.client.HTTPException) as error:
                wrong = repr(error)
            self.done[kind.__name__[1:]] += 1
            if wrong:
                self.failures.append(f"{kind.__name__[1:]}: {wrong}")

    def _ask(self, path: str, body: Any, method: str = "POST") -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)) as connection:
            connection.request(method, path, json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()

    def _body(self, **more: Any) -> dict[str, Any]:
        prompt = PROMPT * self._random.choice((1, 1, 1, 20)) + str(self._random.random())
        return {
            "prompt": prompt,
            "max_tokens": self._random.randint(1, 80),
            "seed": self._random.getrandbits(40),
            **more,
        }

    def _stream(self) -> str:
        status, answer = self._ask("/v1/completions", self._body(stream=True, spikes=self._random.random() < 0.2))
        return "" if status == 200 and answer.endswith(b"data: [DONE]\n\n") else f"{status} {answer[-100:]!r}"

    def _whole(self) -> str:
        status, answer = self._ask("/v1/completions", self._body(n=self._random.randint(1, 3), logprobs=1))
        return "" if status == 200 else f"{status} {answer[:200]!r}"

    def _leave(self) -> str:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)) as connection:
            body = self._body(stream=True, ignore_eos=True) | {"max_tokens": 100_000}
            connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
            connection.getresponse().read(self._random.randint(1, 3000))
        return ""

    def _refused(self) -> str:
        wrong = self._random.choice(({"n": 0}, {"prompt": [10**8]}, {"stop": ""}, {"temperature": "hot"}))
        status, answer = self._ask("/v1/completions", self._body() | wrong)
        return "" if status == 400 else f"{status} {answer[:200]!r}"

    def _session(self) -> str:
        status, answer = self._ask("/v1/sessions", {"prompt": PROMPT})
        if status != 201:
            return f"{status} {answer[:200]!r}"
        id = json.loads(answer)["id"]
        for _ in range(3):
            status, answer = self._ask("/v1/completions", {"session": id, "max_tokens": 10})
            if status != 200:
                return f"{status} {answer[:200]!r}"
        status, answer = self._ask(f"/v1/sessions/{id}", None, "DELETE")
        return "" if status == 200 else f"{status} {answer[:200]!r}"


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=int, default=10)
    given = parser.parse_args()
    minutes, length = (3, 2.0) if given.quick else (given.minutes, 60.0)
    over, rows = threading.Event(), []
    with Server() as server:
        clients = [Client(server.port, seed, over) for seed in range(CLIENTS)]
        for client in clients:
            client.start()
        for minute in range(1, minutes + 1):
            time.sleep(length)
            done = sum((client.done for client in clients), Counter[str]())
            rows.append({"minute": minute, "resident, MB": server.resident() / 1e6, **dict(sorted(done.items()))})
        over.set()
        for client in clients:
            client.join(120)
    failures = [failure for client in clients for failure in client.failures]
    growth = rows[-1]["resident, MB"] / rows[min(1, len(rows) - 1)]["resident, MB"]
    note = f"{len(failures)} failures; resident memory {100 * (growth - 1):+.1f}% from minute 2 to the end."
    report("The server under everything at once", rows, given.json, note=note)
    for failure in failures[:10]:
        print(failure, file=sys.stderr)
    return int(bool(failures) or growth > GROWTH)


if __name__ == "__main__":
    sys.exit(main())

"""The server under load: processor time a written token over the engine's own step, and streams beside a long prompt.

python -m benchmarks.serve [--json FILE] [--quick]: the shipped model with one worker in a process of its own, clients in this
one. "step" is the processor time of `stream.step` in a loop, taken in the same run, so that the ratios hold when the machine
is busy; times to the first token are wall times and do not.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.table import make_parser, median, report
from spikegpt.generation.decode import generate
from spikegpt.loading import load

NOTE = "Goals: at most 2.3 steps a token with a chunk a token, 1.7 with 8 tokens a chunk. The clients run on the same cores."
PROMPT = "It was a dark night, and"


def step_seconds(tokens: int) -> float:
    """Processor time of one step of the engine, alone."""
    stream, best = load(engine="event", threads=1).stream(), float("inf")
    for _ in range(5):
        begun = time.thread_time()
        for token in range(tokens):
            stream.step(5 + token % 4000)
        best = min(best, (time.thread_time() - begun) / tokens)
    return best


class Server:
    """`spikegpt serve` in a process of its own."""

    def __enter__(self) -> Server:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "spikegpt", "serve", "--port", str(self.port), "--workers", "1"],
            stdout=subprocess.DEVNULL,
        )
        while True:
            try:
                with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
                    connection.request("GET", "/health")
                    if connection.getresponse().status == 200:
                        return self
            except OSError:
                pass
            time.sleep(0.1)

    def __exit__(self, *_: Any) -> None:
        self._process.terminate()
        self._process.wait(20)

    def cpu(self) -> float:
        """Processor time of all its threads so far."""
        tasks = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def resident(self) -> int:
        """Bytes of its memory."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stream(self, prompt: str, tokens: int, interval: int, times: list[float], seed: int, **more: Any) -> None:
        """One streamed completion; adds the seconds to its first chunk."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)) as connection:
            body = {
                "prompt": prompt, "max_tokens": tokens, "stream": True, "stream_interval": interval, "ignore_eos": True,
                "temperature": 0.8, "seed": seed, **more,
            }  # fmt: skip
            begun = time.perf_counter()
            connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            response.readline()
            times.append(time.perf_counter() - begun)
            if not response.read().endswith(b"data: [DONE]\n\n"):
                raise RuntimeError("a stream did not end")


def load_row(server: Server, step: float, streams: int, tokens: int, interval: int, **more: Any) -> dict[str, Any]:
    """That many streams at once; `more` are fields of their requests."""
    times: list[float] = []
    clients = [
        threading.Thread(target=server.stream, args=(PROMPT, tokens, interval, times, seed), kwargs=more)
        for seed in range(streams)
    ]
    cpu, begun = server.cpu(), time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    seconds, cpu = time.perf_counter() - begun, server.cpu() - cpu
    written = streams * tokens
    return {
        "streams": streams, "tokens a chunk": interval, "us of processor a token": 1e6 * cpu / written,
        "over a step": cpu / written / step, "tokens/s": written / seconds, "first token, ms": 1e3 * median(sorted(times)),
        "resident, MB": server.resident() / 1e6,
    }  # fmt: skip


def one_stream(server: Server, tokens: int, rounds: int) -> str:
    """How fast a single stream is beside `generate` in this process, in turns, by processor time and by the clock."""
    model, by_cpu, by_clock = load(engine="event", threads=1), [], []
    for seed in range(rounds):
        begun, cpu = time.perf_counter(), time.process_time()
        generation = generate(model, PROMPT, max_tokens=tokens, temperature=0.8, seed=seed)
        written = sum(1 for _ in generation) and generation.tokens
        seconds, cpu = (time.perf_counter() - begun) / written, (time.process_time() - cpu) / written
        begun, before = time.perf_counter(), server.cpu()
        server.stream(PROMPT, tokens, 1, [], seed)
        by_clock.append(seconds * tokens / (time.perf_counter() - begun))
        by_cpu.append(cpu * tokens / (server.cpu() - before or 1e-9))
    shares = [f"{100 * median(sorted(found)):.0f}%" for found in (by_cpu, by_clock)]
    return (
        f"One stream over HTTP beside spikegpt.generate (goal: 60%): {shares[0]} of its tokens a second of processor, "
        f"{shares[1]} by the clock, a Python client beside it."
    )


def main() -> None:
    parser = make_parser(__doc__)
    given = parser.parse_args()
    step = step_seconds(50 if given.quick else 1500)
    plan = [(1, 600), (8, 200), (64, 100), (200, 100)]
    if given.quick:
        plan = [(1, 8), (4, 8)]
    with Server() as server:
        load_row(server, step, 2, 8, 1)
        rows = [load_row(server, step, streams, tokens, interval) for interval in (1, 8) for streams, tokens in plan]
        streams, tokens = plan[1]
        rows.append(load_row(server, step, streams, tokens, 1, spikes=True) | {"streams": f"{streams} with spikes"})
        alone = one_stream(server, *((8, 1) if given.quick else (1000, 7)))
        long = threading.Thread(target=server.stream, args=(PROMPT * (10 if given.quick else 2000), 1, 1, [], 0))
        long.start()
        rows.append(load_row(server, step, 8, plan[1][1], 1) | {"streams": "8 beside a long prompt"})
        long.join()
    report(f"Serving the shipped model, step {1e6 * step:.0f} us", rows, given.json, note=f"{NOTE} {alone}")


if __name__ == "__main__":
    main()

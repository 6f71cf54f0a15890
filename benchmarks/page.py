"""The served page in a real browser: how long its frames are while a text is written at 60 tokens a second.

python -m benchmarks.page [--json FILE] [--quick] [--rate N] [--tokens N]: Chromium without a window, by way of playwright; the
server, one engine of one thread that waits for its time before a turn, runs beside it. Frames are what `requestAnimationFrame`
counts, from the first token to the last; a browser's own are 16.7 ms. Wall times: other programs on the cores make them longer.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.decode import at_a_tenth, shape_of
from benchmarks.table import make_parser, report
from spikegpt.engine import EngineModel, EventModel
from spikegpt.loading import load
from spikegpt.serve.app import make_app
from spikegpt.serve.protocol import make_server
from spikegpt.serve.settings import Settings

GOAL = "Goal: 95% of the frames within 50 ms at the shipped size."
WATCH = """() => {
  window.frames_ = [];
  let last = performance.now();
  const next = () => {
    const now = performance.now();
    frames_.push(now - last);
    last = now;
    if (document.querySelector('#write').disabled) requestAnimationFrame(next);
  };
  document.querySelector('#write').click();
  requestAnimationFrame(next);
}"""


class Paced:
    """A model of which one text writes so many tokens a second."""

    def __init__(self, model: EngineModel, rate: float) -> None:
        self._model, self._gap, self._due = model, 1 / rate, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def advance(self, sequences: list[Any]) -> list[int]:
        """A turn, once it is due; of what was missed at most 0.2 seconds are made up for."""
        now = time.monotonic()
        self._due = max(self._due + self._gap, now - 0.2)
        time.sleep(max(0.0, self._due - now))
        return self._model.advance(sequences)


@contextmanager
def served(model: Any) -> Iterator[str]:
    """The address of a server of this model."""
    from spikegpt.serve.service import Service

    settings = Settings()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]

        def start(loop: asyncio.AbstractEventLoop) -> Service:
            return Service([model], settings, loop, app.state.metrics)

        app = make_app(settings, start, lambda: None, wait=True)
        server = make_server(
            app, "127.0.0.1", port, read_timeout=settings.read_timeout, max_connections=settings.max_connections,
            on_exit=lambda: None,
        )  # fmt: skip
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}/"
        server.should_exit = True
        thread.join(15)


def measure(name: str, model: EngineModel, rate: float, tokens: int) -> dict[str, Any]:
    """The row of one model."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with served(Paced(model, rate)) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        page.evaluate("document.querySelector('details').open = true")
        page.fill("#max_tokens", str(tokens))
        page.fill("#seed", "1")
        page.evaluate(WATCH)
        while page.evaluate("document.querySelector('#write').disabled"):
            time.sleep(0.5)
        frames = sorted(page.evaluate("frames_"))
        shown = float(page.inner_text("#n-speed"))
        browser.close()
    row: dict[str, Any] = {"model": name, "neurons": sum(row.inputs for row in model.meter(neurons=False).counts())}
    row |= {"tokens": tokens, "asked, tokens/s": rate, "shown, tokens/s": shown}
    return row | {f"{share}% of frames within, ms": frames[len(frames) * share // 100] for share in (50, 95, 99)}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rate", type=float, default=60.0, help="tokens a second")
    parser.add_argument("--tokens", type=int, default=1500)
    given = parser.parse_args()
    shipped = load(engine="event", threads=1)
    name, large = shape_of(given.quick, vocab_size=4096)
    if given.quick:
        given.tokens = 60
    models = {"shipped, 6 x 256": shipped, name: EventModel(at_a_tenth(large), shipped.tokenizer, threads=1)}
    rows = [measure(name, model, given.rate, given.tokens) for name, model in models.items()]
    report("The page while a text is written", rows, given.json, note=GOAL)


if __name__ == "__main__":
    main()

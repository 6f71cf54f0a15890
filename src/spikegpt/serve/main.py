"""Running the server: from settings to the end of the last stream."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from ..errors import UsageError, UserError
from .app import make_app
from .protocol import make_server
from .security import LOOPBACK
from .settings import Settings


def serve(model: str | None, settings: Settings, *, insecure: bool = False, announce: Any = print) -> None:
    """Serve a model until a signal ends it. Raises UserError where it cannot begin."""
    check(settings, insecure)

    def load(loop: asyncio.AbstractEventLoop) -> Any:
        from .service import Service  # imports PyTorch

        return Service.open(model, settings, loop, app.state.metrics)

    app = make_app(settings, load, lambda: server.handle_exit(signal.SIGTERM, None))

    def end_streams() -> None:
        if app.state.service is not None:
            app.state.service.end_texts()

    server = make_server(
        app, settings.host, settings.port, read_timeout=settings.read_timeout,
        max_connections=settings.max_connections, on_exit=end_streams,
    )  # fmt: skip
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    announce(f"http://{host}:{settings.port}/  (Ctrl-C ends it)")
    try:
        server.run()
    except SystemExit:
        raise UserError(f"cannot listen on {settings.host}:{settings.port}; choose another --port") from None
    if app.state.failure is not None:
        raise app.state.failure


def check(settings: Settings, insecure: bool) -> None:
    """Refuse to be reachable by others without a key."""
    if settings.host.lower() not in LOOPBACK and settings.key is None and not insecure:
        raise UsageError(
            f"--host {settings.host} can be reached by others: set a key (--key-file or SPIKEGPT_API_KEY), or say --insecure"
        )

"""uvicorn with bounded patience: a request must be complete in a stated time, its headers within a stated size."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .settings import HEADER_BYTES

GRACE = 5
"""Seconds in which running answers end when the server does."""


class PatientProtocol(H11Protocol):
    """Closes connections whose request is not complete in time, however slowly it drips in."""

    patience: ClassVar[float] = 10.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        if self._timer is None and self.conn.their_state is h11.DONE and self.conn.our_state is h11.DONE:
            self._arm()  # another request on this connection
        super().data_received(data)
        if self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            self._disarm()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._disarm()
        if not self.transport.is_closing():
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self.patience, self._give_up)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        self.transport.abort()


class Server(uvicorn.Server):
    """Tells the app first when it is to end, so that running answers end with a last chunk."""

    def __init__(self, config: uvicorn.Config, on_exit: Any) -> None:
        super().__init__(config)
        self._on_exit = on_exit

    def handle_exit(self, sig: int, frame: Any) -> None:
        # uvicorn's own would raise the signal again at the end, so that the exit would not be clean.
        self.force_exit = self.should_exit
        self.should_exit = True
        self._on_exit()


def make_server(app: Any, host: str, port: int, *, read_timeout: float, max_connections: int, on_exit: Any) -> Server:
    """A server of `app`, ready to run."""
    protocol = type("Protocol", (PatientProtocol,), {"patience": read_timeout})
    config = uvicorn.Config(
        app, host=host, port=port, http=protocol, ws="none", log_level="warning", access_log=False, server_header=False,
        date_header=False, h11_max_incomplete_event_size=HEADER_BYTES, limit_concurrency=max_connections,
        timeout_graceful_shutdown=GRACE, timeout_keep_alive=int(read_timeout), lifespan="on", proxy_headers=False,
    )  # fmt: skip
    return Server(config, on_exit)

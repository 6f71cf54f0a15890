"""What stands before every route: which hosts, which key, which content types, how large a body, which headers go back."""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import answer
from .settings import HEADER_BYTES, Settings

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN = ("/health", "/")
"""Paths that need no key, beside the page's own files."""
BINARY = "application/octet-stream"

_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """The middleware, which counts answers too. Refuses by default: a route that is added later is behind it."""

    def __init__(
        self, app: ASGIApp, settings: Settings, page: Iterable[str], requests: Counter[tuple[str, str]]
    ) -> None:
        self._app, self._settings, self._requests = app, settings, requests
        self._hosts = {*LOOPBACK, settings.host.lower(), *(host.lower() for host in settings.allowed_hosts)}
        self._open = {*OPEN, *page}
        self._key = None if settings.key is None else settings.key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = _Body(receive, self._settings.max_body)

        async def answered(message: Message) -> None:
            if not body.too_large:  # else what the app makes of half a body is nobody's business
                await with_headers(message)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._requests[getattr(scope.get("route"), "path", "other"), str(message["status"])] += 1
                for name, value in _HEADERS.items():
                    MutableHeaders(scope=message).setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope["method"], scope["path"], headers)
        if refusal is not None:
            await answer(*refusal)(scope, receive, with_headers)
            return
        await self._app(scope, body.receive, answered)
        if body.too_large:
            await answer(413, self._too_large())(scope, receive, with_headers)

    def _refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        if sum(len(name) + len(value) for name, value in headers.raw) > HEADER_BYTES:
            return 431, f"the headers have more than {HEADER_BYTES:,} bytes"
        if _name(headers.get("host", "")) not in self._hosts:
            return 403, "this host name is not served; start the server with --allow-host NAME to allow it"
        if self._key is not None and not (method in ("GET", "HEAD") and path in self._open):
            given = headers.get("authorization", "").removeprefix("Bearer ").encode()
            if not hmac.compare_digest(given, self._key):
                return 401, "the key is missing or wrong; send it as Authorization: Bearer KEY"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._settings.max_body:
            return 413, self._too_large()
        has_body = length != "0" or "transfer-encoding" in headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        expected = BINARY if path.endswith("/state") else "application/json"
        if has_body and method in ("POST", "PUT", "PATCH") and kind != expected:
            return 415, f"the body must be sent as {expected}"
        return None

    def _too_large(self) -> str:
        return f"the body has more than {self._settings.max_body:,} bytes (--max-body)"


class _Body:
    """A request's body, read up to a limit; beyond it the app sees a client that has gone."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._left = receive, limit
        self.too_large = False

    async def receive(self) -> Message:
        """The next message."""
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left >= 0:
            return message
        self.too_large = True
        return {"type": "http.disconnect"}


def _name(host: str) -> str:
    """A Host header without its port."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host

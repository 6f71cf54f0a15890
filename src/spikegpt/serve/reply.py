"""Parts of answers: what they begin with, events, scores, reasons, usage; and who waits for them."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from .errors import failure

DONE = b"data: [DONE]\n\n"
"""The last event of every stream."""

_REASONS = {"length": "length", "stop": "stop", "end": "stop", "cancelled": "length"}


class Envelope:
    """What every answer to one request begins with, whole or an event of many."""

    def __init__(self, kind: str, model: str) -> None:
        self._id, self._created, self._model = f"{kind}-{secrets.token_hex(12)}", int(time.time()), model

    def __call__(self, object: str, **content: Any) -> dict[str, Any]:
        """The answer of this name."""
        return {"id": self._id, "object": object, "created": self._created, "model": self._model, **content}


def encoded(values: Any) -> str:
    """Values as an answer has them."""
    return json.dumps(values, ensure_ascii=False)


def event(values: Any) -> bytes:
    """A server-sent event."""
    return f"data: {encoded(values)}\n\n".encode()


def failed(status: int, message: str) -> bytes:
    """The event of an error."""
    return event(failure(status, message))


def at_once(values: Any) -> Response:
    """An answer in one piece."""
    return Response(encoded(values), media_type="application/json")


def streamed(events: AsyncIterator[bytes]) -> Response:
    """An answer in events."""
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})


class Collected:
    """One text's pieces, put together."""

    def __init__(self) -> None:
        self.text, self.spikes = "", b""
        self.tokens: list[int] = []
        self.scores: list[Any] = []
        self.reason: str | None = None
        self.stop: str | None = None
        self.session: Any = None

    def add(self, piece: Any) -> None:
        """Add the next piece."""
        self.text += piece.text
        self.spikes += piece.spikes
        self.tokens += piece.tokens
        self.scores += piece.scores
        self.reason, self.stop, self.session = piece.reason, piece.stop, piece.session

    def mean_logprob(self) -> float:
        """Of the tokens that were written."""
        written = self.scores[-len(self.tokens) :] if self.tokens else []
        return sum(score.logprob for score in written) / max(1, len(written))


def reason_of(reason: str | None) -> str | None:
    """Why a text ended, in the interface's words."""
    return None if reason is None else _REASONS[reason]


def usage_of(streams: Sequence[Any], texts_a_prompt: int) -> dict[str, Any]:
    """Tokens of all prompts, each counted once, and of all texts."""
    first = streams[::texts_a_prompt]
    prompt = sum(stream.text.prompt_tokens for stream in first)
    written = sum(stream.text.tokens for stream in streams)
    return {
        "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": sum(stream.cached_tokens for stream in first)},
    }  # fmt: skip


def logprobs_of(tokenizer: Any, scores: Sequence[Any], first: list[int], offset: int) -> tuple[dict[str, Any], int]:
    """The logprobs object of these scores, before them a prompt's first token, which has none; where the text goes on.

    Of two tokens with the same text the likelier counts in `top_logprobs`.
    """
    names = [_name(tokenizer, token) for token in first] + [_name(tokenizer, score.token) for score in scores]
    nothing: list[Any] = [None] * len(first)
    values = nothing + [score.logprob for score in scores]
    tops = nothing.copy()
    for score in scores:
        top: dict[str, float] = {}
        for token, logprob in [*score.top, (score.token, score.logprob)]:
            name = _name(tokenizer, token)
            top[name] = max(top.get(name, -math.inf), logprob)
        tops.append(top)
    offsets = []
    for name in names:
        offsets.append(offset)
        offset += len(name)
    return {"tokens": names, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}, offset


def _name(tokenizer: Any, token: int) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


async def unless_gone(request: Request, work: Coroutine[Any, Any, Response], cancel: Callable[[], None]) -> Response:
    """The work's answer; if the client goes first the work is cancelled."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return Response(status_code=499)
        return await working
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
        cancel()

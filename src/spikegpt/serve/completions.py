"""`/v1/completions`: a text goes on, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from .errors import Refusal, responses
from .reply import (
    DONE,
    Collected,
    Envelope,
    at_once,
    encoded,
    event,
    failed,
    logprobs_of,
    reason_of,
    streamed,
    unless_gone,
    usage_of,
)
from .routes import current
from .schema import Completion

if TYPE_CHECKING:
    from ..generation.session import Session
    from .service import Inbox, Service

router = APIRouter()

INLINE = 4096
"""Characters or tokens of prompts that are read at once, and not beside the loop."""

DESCRIPTION = "A completion; with `stream` the events of one, each a `data:` line, the last one [DONE]."


@router.post(
    "/v1/completions",
    responses=responses(404, 409, 429, 500)
    | {200: {"description": DESCRIPTION, "content": {"application/json": {}, "text/event-stream": {}}}},
)
async def complete(body: Completion, request: Request) -> Response:
    """Continue one or more texts."""
    service = current(request)
    writing = await Writing.begin(service, body)
    if body.stream:
        return streamed(writing.events())
    return await unless_gone(request, writing.whole(), writing.cancel)


class Writing:
    """One request's texts, from its fields to its answer."""

    def __init__(self, service: Service, body: Completion, kind: str, prompts: list[Any], texts: list[str]) -> None:
        self.service, self.body = service, body
        self.prompts, self.texts = prompts, texts
        self.choices = body.n or 1
        self.best_of = max(body.best_of or self.choices, self.choices)
        self.envelope = Envelope(kind, service.settings.name)
        self.inbox: Inbox
        self.claimed: str | None = None
        self.version: str | None = None
        self._index: dict[int, int] = {}
        """Of best_of: a text's place among the best."""

    @staticmethod
    async def begin(service: Service, body: Completion, kind: str = "cmpl") -> Writing:
        """Check what the fields say together, and begin; the answer's id says of which kind it is."""
        check_model(service, body.model)
        if body.suffix:
            raise Refusal(400, "suffix is not supported: this model only continues texts", "suffix")
        prompts, texts = await read_prompts(service, body)
        writing = Writing(service, body, kind, prompts, texts)
        writing._check_size()
        try:
            writing.inbox = service.begin(await writing._orders())
        except BaseException:
            writing.release()
            raise
        return writing

    async def _orders(self) -> list[Any]:
        """What is to be written, from the state of the session if there is one."""
        from .orders import orders_of
        from .sessions import version_of

        session, body = None, self.body
        if body.session is not None:
            if len(self.prompts) * self.best_of == 1:  # else every text leaves a session of its own
                self.service.claim(body.session)
                self.claimed = body.session
            data = await self.service.fetch(body.session)
            session, self.version = self.service.parse(data), version_of(data)
            if body.echo:
                raise Refusal(400, "echo repeats a prompt, and a session's is not kept; leave one of them out", "echo")
        return orders_of(self.service, body, self.prompts, self.best_of, self.max_tokens, session)

    @property
    def max_tokens(self) -> int:
        """Tokens a text may have."""
        return 16 if self.body.max_tokens is None else self.body.max_tokens

    def _check_size(self) -> None:
        most, total = self.service.settings.max_request_tokens, len(self.prompts) * self.best_of * self.max_tokens
        if total > most:
            large = f"the request may write {total:,} tokens, more than {most:,} (--max-request-tokens)"
            raise Refusal(429, large, "max_tokens", {"x-should-retry": "false"})

    def release(self) -> None:
        """Let go of the session."""
        if self.claimed is not None:
            self.service.release(self.claimed)
            self.claimed = None

    def cancel(self) -> None:
        """The client has gone."""
        self.inbox.cancel()
        self.release()

    def echoed(self, number: int) -> str:
        """What a choice's text begins with."""
        return self.texts[number // self.best_of] if self.body.echo else ""

    async def kept(self, number: int, session: Session | None) -> str | None:
        """The id of the session that a choice leaves; None where none is kept."""
        if session is None:
            return None
        if self.claimed is None:
            return await self.service.add_session(session)
        await self.service.save(self.claimed, session, self.version)
        return self.claimed

    async def whole(self) -> Response:
        """The answer at once."""
        collected = await self._collected()
        choices = [
            self._choice(number, collected[number], await self.kept(number, collected[number].session), index)
            for index, number in enumerate(self._chosen(collected))
        ]
        return at_once(self._answer(choices, usage=usage_of(self.inbox.streams, self.best_of)))

    async def _collected(self) -> list[Collected]:
        """Every text, once all are written."""
        collected = [Collected() for _ in self.inbox.streams]
        async for number, piece in self.inbox:
            collected[number].add(piece)
            if piece.reason == "error":
                self.cancel()
                raise Refusal(500, piece.stop or "the text could not be written")
        return collected

    async def _best(self) -> AsyncIterator[tuple[int, Any]]:
        """The best texts, each in one piece: which they are is known only at the end."""
        collected = await self._collected()
        for index, number in enumerate(self._chosen(collected)):
            self._index[number] = index
            yield number, collected[number]

    def _chosen(self, collected: Sequence[Collected]) -> list[int]:
        """The texts that are answered with: of `best_of` for each prompt the n of the best mean log-probability."""
        chosen = []
        for first in range(0, len(collected), self.best_of):
            numbers = list(range(first, first + self.best_of))
            if self.best_of > self.choices:
                numbers.sort(key=lambda number: -collected[number].mean_logprob())
            chosen += numbers[: self.choices]
        return chosen

    def _choice(self, number: int, text: Collected, session: str | None, index: int) -> dict[str, Any]:
        body = self.body
        choice: dict[str, Any] = {"index": index, "text": self.echoed(number) + text.text, "logprobs": None}
        if body.logprobs is not None:
            echoed = self.prompts[number // self.best_of].tolist() if body.echo else []
            choice["logprobs"], _ = logprobs_of(self.service.tokenizer, text.scores, echoed[:1], 0)
        choice |= {"finish_reason": reason_of(text.reason), "stop_reason": text.stop if text.reason == "stop" else None}
        if body.return_token_ids:
            choice |= {"token_ids": text.tokens, "prompt_token_ids": self.prompts[number // self.best_of].tolist()}
        if body.spikes:
            cached = self.inbox.streams[number].cached_tokens
            choice |= {"spikes": base64.b64encode(text.spikes).decode(), "sites": self.service.site_list()}
            choice["cached_tokens"] = cached  # the first of the prompt, which were not read again: without spikes
        if session is not None:
            choice["session"] = session
        return choice

    def _answer(self, choices: list[Any], **more: Any) -> dict[str, Any]:
        return self.envelope("text_completion", choices=choices, **more)

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""
        body = self.body
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        ending = b',"usage":null}\n\n' if with_usage else b"}\n\n"
        head = encoded(self._answer([]))[:-2]  # up to the list's bracket
        begin = f"data: {head}".encode()
        plain = body.logprobs is None and not body.return_token_ids  # an event that needs no dictionary
        quiet, fired = b"}]" + ending, b""
        ready = b""  # events that go out together where this loop is behind the engine
        offsets, begun = [0] * len(self.inbox.streams), [False] * len(self.inbox.streams)
        try:
            async for number, piece in self.inbox if self.best_of == self.choices else self._best():
                if piece.reason == "error":
                    yield ready + failed(500, piece.stop or "the text could not be written")
                    break
                text = piece.text if begun[number] else self.echoed(number) + piece.text
                if plain and piece.reason is None and (begun[number] or not body.spikes):
                    begun[number] = True
                    if body.spikes:
                        fired = b',"spikes":"%s"' % base64.b64encode(piece.spikes)
                    if text or fired:
                        choice = '{"index":%d,"text":%s,"logprobs":null,"finish_reason":null'
                        choice %= number, encoded(text)
                        ready += begin + choice.encode() + fired + quiet
                    if ready and not self.inbox.ready:
                        yield ready
                        ready = b""
                    continue
                choice_fields, offsets[number] = self._chunk(number, piece, text, begun[number], offsets[number])
                begun[number] = True
                if (session := await self.kept(number, piece.session)) is not None:
                    choice_fields["session"] = session
                if piece.reason is not None:
                    self.release()
                yield ready + begin + encoded(choice_fields).encode() + b"]" + ending
                ready = b""
            else:
                if with_usage:
                    yield event(self._answer([], usage=usage_of(self.inbox.streams, self.best_of)))
            yield DONE
        except Refusal as error:  # of a session that could not be kept
            yield ready + failed(error.status, error.message) + DONE
        finally:
            self.cancel()

    def _chunk(self, number: int, piece: Any, text: str, begun: bool, offset: int) -> tuple[dict[str, Any], int]:
        body = self.body
        choice: dict[str, Any] = {
            "index": self._index.get(number, number),
            "text": text,
            "logprobs": None,
            "finish_reason": reason_of(piece.reason),
        }
        prompt = (
            self.prompts[number // self.best_of].tolist() if not begun and (body.echo or body.return_token_ids) else []
        )
        if body.logprobs is not None:
            first = prompt[:1] if body.echo else []
            choice["logprobs"], offset = logprobs_of(self.service.tokenizer, piece.scores, first, offset)
        if piece.reason is not None:
            choice["stop_reason"] = piece.stop if piece.reason in ("stop", "length") else None
        if body.return_token_ids:
            choice["token_ids"] = list(piece.tokens)
            if not begun:
                choice["prompt_token_ids"] = prompt
        if body.spikes:
            choice["spikes"] = base64.b64encode(piece.spikes).decode()
            if not begun:
                choice |= {"sites": self.service.site_list(), "cached_tokens": self.inbox.streams[number].cached_tokens}
        return choice, offset


def check_model(service: Service, name: str | None) -> None:
    """Refuse another model's name."""
    if name is not None and name != service.settings.name:
        raise Refusal(404, f"there is no model {name!r} here, but {service.settings.name!r}", "model")


async def read_prompts(service: Service, body: Completion) -> tuple[list[Any], list[str]]:
    """Each prompt's ids and text."""
    given = body.prompt
    single = isinstance(given, str) or isinstance(given[0], int)
    prompts: list[Any] = [given] if single else list(given)
    if sum(map(len, prompts)) < INLINE:
        return service.read_prompts(prompts)
    return await asyncio.to_thread(service.read_prompts, prompts)

"""`/v1/chat/completions`, for models whose operator says how messages become a text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from .completions import Writing, check_model, failed
from .errors import Refusal, responses
from .reply import Collected, reason_of, unless_gone, usage_of
from .routes import current
from .schema import Chat, Completion

router = APIRouter()

DESCRIPTION = "A completion of a chat; with `stream` the events of one."


@router.post(
    "/v1/chat/completions",
    responses=responses(404, 429, 500)
    | {200: {"description": DESCRIPTION, "content": {"application/json": {}, "text/event-stream": {}}}},
)
async def chat(body: Chat, request: Request) -> Response:
    """Continue a chat."""
    service = current(request)
    check_model(service, body.model)
    template = service.settings.chat_template
    if template is None:
        raise Refusal(
            400,
            "this is a base model without a chat template: use /v1/completions, or start the server with "
            "--chat-template plain (or a template's file)",
        )
    fields = body.model_dump(exclude={"messages", "max_completion_tokens", "logprobs", "top_logprobs", "max_tokens"})
    prompt = render(template, [{"role": each.role, "content": each.text} for each in body.messages])
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    writing = await Writing.begin(
        service, Completion(**fields, prompt=prompt, max_tokens=256 if limit is None else limit)
    )
    writing.id = writing.id.replace("cmpl", "chatcmpl")
    if body.stream:
        return StreamingResponse(
            _events(writing), media_type="text/event-stream", headers={"cache-control": "no-cache"}
        )
    return await unless_gone(request, _whole(writing), writing.cancel)


def render(template: str, messages: list[dict[str, Any]]) -> str:
    """The text of a chat: "plain" joins the messages by blank lines, else a Jinja template in its sandbox."""
    if template == "plain":
        return "\n\n".join(message["content"] for message in messages)
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        compiled = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
        return compiled.render(messages=messages, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        raise Refusal(400, f"the chat template does not take these messages: {error}", "messages") from None


def _envelope(writing: Writing, kind: str, choices: list[Any]) -> dict[str, Any]:
    return {
        "id": writing.id, "object": kind, "created": writing.created, "model": writing.service.settings.name,
        "choices": choices,
    }  # fmt: skip


async def _whole(writing: Writing) -> Response:
    collected = [Collected() for _ in writing.inbox.streams]
    async for number, piece in writing.inbox:
        collected[number].add(piece)
        if piece.reason == "error":
            raise Refusal(500, piece.stop or "the text could not be written")
    choices = [
        {
            "index": index, "message": {"role": "assistant", "content": text.text}, "logprobs": None,
            "finish_reason": reason_of(text.reason),
        }
        for index, text in enumerate(collected)
    ]  # fmt: skip
    answer = _envelope(writing, "chat.completion", choices) | {
        "usage": usage_of(writing.inbox.streams, writing.best_of)
    }
    return Response(json.dumps(answer, ensure_ascii=False), media_type="application/json")


async def _events(writing: Writing) -> AsyncIterator[bytes]:
    options = writing.body.stream_options
    with_usage = options is not None and options.include_usage
    more = {"usage": None} if with_usage else {}

    def event(choices: list[Any], extra: dict[str, Any]) -> bytes:
        values = _envelope(writing, "chat.completion.chunk", choices) | extra
        return f"data: {json.dumps(values, ensure_ascii=False)}\n\n".encode()

    def choice(number: int, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}

    try:
        for number in range(len(writing.inbox.streams)):
            yield event([choice(number, {"role": "assistant", "content": ""}, None)], more)
        async for number, piece in writing.inbox:
            if piece.reason == "error":
                yield failed(500, piece.stop or "the text could not be written")
                break
            if piece.text or piece.reason is not None:
                delta = {"content": piece.text} if piece.text else {}
                yield event([choice(number, delta, reason_of(piece.reason))], more)
        else:
            if with_usage:
                yield event([], {"usage": usage_of(writing.inbox.streams, writing.best_of)})
        yield b"data: [DONE]\n\n"
    finally:
        writing.cancel()

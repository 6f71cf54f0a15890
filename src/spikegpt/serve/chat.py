"""`/v1/chat/completions`, for models whose operator says how messages become a text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from .completions import Writing, check_model
from .errors import Refusal, responses
from .reply import DONE, Collected, at_once, event, failed, reason_of, streamed, unless_gone, usage_of
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
    asked = Completion(**fields, prompt=prompt, max_tokens=256 if limit is None else limit)
    writing = await Writing.begin(service, asked, "chatcmpl")
    if body.stream:
        return streamed(_events(writing))
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
    usage = usage_of(writing.inbox.streams, writing.best_of)
    return at_once(writing.envelope("chat.completion", choices=choices, usage=usage))


async def _events(writing: Writing) -> AsyncIterator[bytes]:
    options = writing.body.stream_options
    with_usage = options is not None and options.include_usage
    more = {"usage": None} if with_usage else {}

    def chunk(choices: list[Any], extra: dict[str, Any]) -> bytes:
        return event(writing.envelope("chat.completion.chunk", choices=choices, **extra))

    def choice(number: int, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}

    try:
        for number in range(len(writing.inbox.streams)):
            yield chunk([choice(number, {"role": "assistant", "content": ""}, None)], more)
        async for number, piece in writing.inbox:
            if piece.reason == "error":
                yield failed(500, piece.stop or "the text could not be written")
                break
            if piece.text or piece.reason is not None:
                delta = {"content": piece.text} if piece.text else {}
                yield chunk([choice(number, delta, reason_of(piece.reason))], more)
        else:
            if with_usage:
                yield chunk([], {"usage": usage_of(writing.inbox.streams, writing.best_of)})
        yield DONE
    finally:
        writing.cancel()

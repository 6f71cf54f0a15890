"""`/classify`: labels of texts, whole or after every token, where the model is a classifier."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from .completions import check_model
from .errors import Refusal, responses
from .reply import DONE, Envelope, at_once, event, streamed, unless_gone
from .routes import current
from .schema import Classify

if TYPE_CHECKING:
    from .labels import Labels
    from .service import Service

router = APIRouter()

DESCRIPTION = "A label for each text; with `stream` the events of their forming, one a token, the last one [DONE]."


@router.post(
    "/classify",
    responses=responses(404, 429)
    | {200: {"description": DESCRIPTION, "content": {"application/json": {}, "text/event-stream": {}}}},
)
async def classify(body: Classify, request: Request) -> Response:
    """Label texts, where the model is a classifier."""
    service = current(request)
    check_model(service, body.model)
    if service.labels is None:
        raise Refusal(404, "this model has no labels; serve a directory that spikegpt finetune wrote")
    given = [body.input] if isinstance(body.input, str) else body.input
    rows = await asyncio.to_thread(service.encode_labelled, given)
    labelling = Labelling(service, service.labels, rows)
    if body.stream:
        return streamed(labelling.events())
    return await unless_gone(request, labelling.whole(), lambda: None)


class Labelling:
    """One request's texts, from their tokens to the answer."""

    def __init__(self, service: Service, labels: Labels, rows: list[Any]) -> None:
        service.check_room(len(rows))
        self.service, self.labels, self.rows = service, labels, rows
        self._envelope = Envelope("classify", service.settings.name)
        self._weights = 0

    def _usage(self) -> dict[str, Any]:
        tokens = sum(map(len, self.rows))
        return {
            "prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None,
            "weights_read": self._weights, "weights": tokens * self.service.products,
        }  # fmt: skip

    async def whole(self) -> Response:
        """The answer at once."""
        data = await asyncio.gather(*(self._answer(index, row) for index, row in enumerate(self.rows)))
        return at_once(self._envelope("list", data=list(data), usage=self._usage()))

    async def _answer(self, index: int, row: Any) -> dict[str, Any]:
        chances = None
        async for formed in self.labels.read(row):
            chances = formed.chances[-1]
            self._weights += formed.weights_read
        assert chances is not None  # no row is empty
        return {"index": index} | self.labels.describe(chances)

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events: the label so far after every token, text after text."""
        for index, row in enumerate(self.rows):
            read = 0
            async with contextlib.aclosing(self.labels.read(row)) as reading:
                async for formed in reading:
                    self._weights += formed.weights_read
                    yield b"".join(
                        self._event([self._so_far(index, row, read + after, chances)])
                        for after, chances in enumerate(formed.chances)
                    )
                    read += len(formed.chances)
        yield self._event([], usage=self._usage())
        yield DONE

    def _so_far(self, index: int, row: Any, at: int, chances: Any) -> dict[str, Any]:
        """A text's answer after its token `at`."""
        token = int(row[at])
        text = self.service.tokenizer.token_bytes(token).decode("utf-8", "replace")
        answer = {"index": index, "token": token, "text": text} | self.labels.describe(chances)
        return answer | {"finish_reason": "stop" if at + 1 == len(row) else None}

    def _event(self, data: list[Any], **more: Any) -> bytes:
        return event(self._envelope("classify.chunk", data=data, **more))

"""What a server tells of itself and of its tokenizer: health, metrics, models, tokens."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from .completions import check_model
from .errors import responses
from .routes import current
from .schema import Detokenize, Tokenize

router = APIRouter()


@router.get("/health", responses={503: {"description": "The model is loading."}})
async def health(request: Request) -> JSONResponse:
    """200 once the model is loaded."""
    ready = request.app.state.service is not None
    return JSONResponse({"status": "ok" if ready else "loading"}, 200 if ready else 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses=responses() | {200: {"description": "Prometheus's text format.", "content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    current(request)
    return Response(await asyncio.to_thread(request.app.state.metrics.text), media_type="text/plain; version=0.0.4")


@router.get("/v1/models", responses=responses())
async def models(request: Request) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [_model(request)]}


@router.get("/v1/models/{id}", responses=responses(404))
async def model(id: str, request: Request) -> dict[str, Any]:
    """The same by its name."""
    check_model(current(request), id)
    return _model(request)


def _model(request: Request) -> dict[str, Any]:
    service = current(request)
    return {
        "id": service.settings.name, "object": "model", "created": request.app.state.started, "owned_by": "spikegpt",
        "meta": service.facts(),
    }  # fmt: skip


@router.post("/tokenize", responses=responses(404))
async def tokenize(body: Tokenize, request: Request) -> dict[str, Any]:
    """A text's tokens."""
    service = current(request)
    check_model(service, body.model)
    end = service.tokenizer.eos_id
    if end is not None and body.prompt == service.end_of_text:
        ids = [end]  # so that a client learns it, who knows only its name
    else:
        ids = (await asyncio.to_thread(service.encode, body.prompt)).tolist()
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": service.settings.max_prompt_tokens, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = [service.tokenizer.token_bytes(token).decode("utf-8", "replace") for token in ids]
    return answer


@router.post("/detokenize", responses=responses(404))
async def detokenize(body: Detokenize, request: Request) -> dict[str, Any]:
    """The text of tokens."""
    service = current(request)
    check_model(service, body.model)
    service.check_tokens(body.tokens, "tokens")
    return {"prompt": service.tokenizer.decode(body.tokens)}


@router.get("/tokenizer_info", responses=responses())
async def tokenizer_info(request: Request) -> dict[str, Any]:
    """What a client needs to know of the tokenizer; a text begins after `bos_token`."""
    service = current(request)
    tokenizer, end, template = service.tokenizer, service.end_of_text, service.settings.chat_template
    return {
        "tokenizer_class": type(tokenizer).__name__, "eos_token": end, "bos_token": None, "pad_token": None,
        "chat_template": template, "vocab_size": tokenizer.vocab_size,
    }  # fmt: skip

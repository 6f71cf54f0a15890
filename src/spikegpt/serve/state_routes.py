"""`/v1/sessions`: what the model remembers of a text, kept, copied, sent and looked into. Of constant size."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.responses import JSONResponse, Response

from .errors import Refusal, responses
from .routes import current
from .schema import NewSession
from .security import BINARY
from .sessions import new_id, version_of

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

Id = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="A session's id.")]


@router.post("", status_code=201, responses=responses(404, 409, 429))
async def begin(body: NewSession, request: Request) -> dict[str, Any]:
    """Begin a session: empty, after a prompt, or from another one."""
    from ..generation.sampling import Sampling
    from .streams import Order

    service = current(request)
    session = service.fresh() if body.from_ is None else service.parse(await service.fetch(body.from_))
    if body.prompt:
        ids = await asyncio.to_thread(service.encode, body.prompt)
        inbox = service.begin([
            Order(ids=ids, sampling=(Sampling(),), max_tokens=0, session=None if body.from_ is None else session, keeps=True)
        ])  # fmt: skip
        try:
            async for _, piece in inbox:
                if piece.reason == "error":
                    raise Refusal(500, piece.stop or "the prompt could not be read")
                session = piece.session or session
        finally:
            inbox.cancel()
    return describe(await service.add_session(session), session)


@router.get("/{id}", responses=responses(404))
async def look(id: Id, request: Request) -> dict[str, Any]:
    """What is known of a session."""
    service = current(request)
    return describe(id, service.parse(await service.fetch(id)))


@router.delete("/{id}", responses=responses(404, 409))
async def forget(id: Id, request: Request) -> dict[str, Any]:
    """Forget a session."""
    service = current(request)
    service.claim(id)
    try:
        if not await asyncio.to_thread(service.store.delete, id):
            raise Refusal(404, f"there is no session {id}, or not any more", "session")
    finally:
        service.release(id)
    return {"id": id, "deleted": True}


@router.post("/{id}/fork", status_code=201, responses=responses(404))
async def fork(id: Id, request: Request) -> dict[str, Any]:
    """A copy of a session, which goes its own way."""
    service = current(request)
    data, copy = await service.fetch(id), new_id()
    await service.save_bytes(copy, data, None)
    return describe(copy, service.parse(data))


@router.get(
    "/{id}/state",
    response_class=Response,
    responses=responses(404) | {200: {"description": "The session as a safetensors file.", "content": {BINARY: {}}}},
)
async def download(id: Id, request: Request) -> Response:
    """A session's file, which `spikegpt generate --state` reads too."""
    headers = {"content-disposition": f'attachment; filename="{id}.safetensors"'}
    return Response(await current(request).fetch(id), media_type=BINARY, headers=headers)


@router.put("/{id}/state", responses=responses(404, 409))
async def upload(
    id: Id, request: Request, data: Annotated[bytes, Body(media_type=BINARY, min_length=1)]
) -> dict[str, Any]:
    """Replace a session by a file, or make one under an id of the client's choice."""
    service = current(request)
    if data[8:9] != b"{":  # where the header of every safetensors file begins
        raise Refusal(409, "what was sent is no session's file", "session")
    session = service.parse(data)
    service.claim(id)
    try:
        kept = await asyncio.to_thread(service.store.get, id)
        await service.save_bytes(id, data, None if kept is None else version_of(kept))
    finally:
        service.release(id)
    return describe(id, session)


@router.get("/{id}/tensors", responses=responses(404))
async def tensors(
    id: Id,
    request: Request,
    name: Annotated[str | None, Query(max_length=128, description="One tensor's name.")] = None,
) -> JSONResponse:
    """The names and shapes of what a session remembers, or the values of one tensor."""
    service = current(request)
    named = service.parse(await service.fetch(id)).state.named()
    if name is None:
        return JSONResponse({"tensors": {key: list(tensor.shape[1:]) for key, tensor in named.items()}})
    if name not in named:
        raise Refusal(404, f"the state has no {name!r}; ask without a name for all", "name")
    tensor = named[name][0]
    return JSONResponse({"name": name, "shape": list(tensor.shape), "values": tensor.flatten().tolist()})


def describe(id: str, session: Any) -> dict[str, Any]:
    """A session for clients."""
    size = sum(tensor.nbytes for tensor in session.state.named().values())
    return {"id": id, "object": "session", "bytes": size, "begun": session.pending is not None}

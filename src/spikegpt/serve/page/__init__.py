"""The page: plain files, served as they are."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response

router = APIRouter(include_in_schema=False)

_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


def _contents() -> dict[str, tuple[bytes, str, str]]:
    """path -> contents, content type, ETag of every file."""
    found = {}
    for file in sorted(files(__name__).iterdir(), key=lambda file: file.name):
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is None:
            continue
        data = file.read_bytes()
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        found["/" if file.name == "index.html" else f"/{file.name}"] = (data, f"{kind}; charset=utf-8", tag)
    return found


_FILES = _contents()


def paths() -> list[str]:
    """Where the page's files are."""
    return list(_FILES)


async def _serve(request: Request) -> Response:
    data, kind, tag = _FILES[request.url.path]
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)


for _path in _FILES:
    router.add_api_route(_path, _serve, methods=["GET"])

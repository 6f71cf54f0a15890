"""Errors as clients of the usual interface expect them: one object, one line that says what to do."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ..errors import UserError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Detail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Failure(BaseModel):
    """The body of every answer that is no success."""

    error: Detail


class Refusal(Exception):
    """A request that cannot be served: status, one line, and the field that it is about."""

    def __init__(
        self, status: int, message: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, headers


def failure(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": " ".join(message.split()), "type": kind, "param": param, "code": None}}


def answer(status: int, message: str, param: str | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as a response."""
    return JSONResponse(failure(status, message, param), status, headers)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route declares: the errors that it may answer with, and those that every route may."""
    return {status: {"model": Failure} for status in {400, 401, 403, 413, 415, 503, *statuses}}


def install(app: FastAPI) -> None:
    """Answer every error in the one form."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        field = next((part for part in where if part.isidentifier()), None)
        return answer(400, f"{'.'.join(where[:3]) or 'the body'}: {first['msg']}", field)

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> JSONResponse:
        return answer(error.status, error.message, error.param, error.headers)

    @app.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> JSONResponse:
        return answer(400, str(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        if error.status_code == 405 and (methods := _methods(app, request.url.path)):
            headers["allow"] = ", ".join(methods)
        return answer(error.status_code, str(error.detail), headers=headers)


def _methods(app: FastAPI, path: str) -> list[str]:
    """What may be asked of a path: by all its routes, not by the first alone."""
    found: set[str] = set()
    for template, methods in app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), path):
            found |= {method.upper() for method in methods}
    return sorted(found)

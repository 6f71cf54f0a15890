"""What every route needs: the service, once the model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request

from .errors import Refusal

if TYPE_CHECKING:
    from .service import Service


def current(request: Request) -> Service:
    """The service; refused with 503 while the model is loading."""
    service = request.app.state.service
    if service is None:
        raise Refusal(503, "the model is still loading; try again in a moment", headers={"retry-after": "1"})
    return service

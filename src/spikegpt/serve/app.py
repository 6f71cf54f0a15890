"""The application: routes, what stands before them, and the model, which is loaded beside the loop."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from .. import __version__
from . import chat, classify, completions, errors, info, page, state_routes
from .metrics import Metrics
from .openapi import described
from .security import Guard
from .settings import Settings


def make_app(
    settings: Settings, load: Callable[[asyncio.AbstractEventLoop], Any], on_failure: Callable[[], None], *,
    wait: bool = False,
) -> FastAPI:  # fmt: skip
    """The application of a model that `load` gives, in a thread of its own; `on_failure` where it raises.

    `wait`: no request is taken before the model is loaded, and what `load` raises is raised.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        loading = threading.Thread(target=_load, args=(app, load, loop, on_failure), daemon=True)
        loading.start()
        if wait:
            await asyncio.to_thread(loading.join)
            if app.state.failure is not None:
                raise app.state.failure
        yield
        if app.state.service is not None:
            await asyncio.to_thread(app.state.service.close)

    app = FastAPI(
        title="SpikeGPT", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="A language model made of spiking neurons, behind the usual interface.",
    )  # fmt: skip
    app.state.service, app.state.started = None, int(time.time())
    app.state.metrics = Metrics()
    app.state.failure = None
    for part in (completions, chat, classify, state_routes, info, page):
        app.include_router(part.router)
    errors.install(app)
    app.openapi = described(app.openapi, lambda: app.state.service)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.origins), allow_credentials=False,
            allow_methods=["GET", "POST", "PUT", "DELETE"], allow_headers=["authorization", "content-type"],
        )  # fmt: skip
    app.add_middleware(Guard, settings=settings, page=page.paths(), requests=app.state.metrics.requests)
    return app


def _load(
    app: FastAPI,
    load: Callable[[asyncio.AbstractEventLoop], Any],
    loop: asyncio.AbstractEventLoop,
    on_failure: Callable[[], None],
) -> None:
    try:
        service = load(loop)
    except BaseException as error:
        app.state.failure = error
        on_failure()
        return
    sys.setswitchinterval(0.0005)  # the loop and the workers take turns sooner than programs of one thread need
    app.state.service = service

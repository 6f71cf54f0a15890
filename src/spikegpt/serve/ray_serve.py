"""The server on Ray Serve (the extra `ray`): replicas of one application, on one machine or many, that share their sessions.

serve run spikegpt.serve.ray_serve:deploy replicas=2 redis=redis://127.0.0.1:6379/0 model=runs/events
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from ray import serve  # pyright: ignore[reportMissingImports] (an extra)

from .app import make_app
from .settings import Settings


def deploy(given: dict[str, Any]) -> Any:
    """What `serve run` deploys: `replicas` (1) of `model` (the shipped one), each with `cpus` (1) and an engine for each.

    `redis` is the URL where sessions are kept, `host` a name by which clients ask, `stream_limit` (256) the texts of a
    replica, `engine` as of `spikegpt serve`. A key is taken from SPIKEGPT_API_KEY where this runs.
    """
    model, cpus, streams = given.get("model"), float(given.get("cpus", 1)), int(given.get("stream_limit", 256))
    settings = Settings(
        redis=given.get("redis"), workers=max(1, int(cpus)), max_streams=streams, key=os.environ.get("SPIKEGPT_API_KEY"),
        allowed_hosts=(given["host"],) if "host" in given else (), engine=given.get("engine", "auto"),
    )  # fmt: skip

    def build() -> Any:
        return application(model, settings)

    replica = serve.deployment(serve.ingress(build)(), name="spikegpt")
    return replica.options(
        num_replicas=int(given.get("replicas", 1)),
        ray_actor_options={"num_cpus": cpus},
        max_ongoing_requests=2 * streams,
    ).bind()


def application(model: str | None, settings: Settings) -> Any:
    """The application of one replica, which takes requests once the model is loaded."""

    def load(loop: asyncio.AbstractEventLoop) -> Any:
        from .service import Service  # imports PyTorch

        return Service.open(model, settings, loop, app.state.metrics)

    app = make_app(settings, load, lambda: None, wait=True)  # what fails is raised, for Ray to tell
    return app

"""`spikegpt serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .options import Model


def serve(
    model: Model = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name to clients.", show_default="its directory's")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="File with the key that clients must show; or set SPIKEGPT_API_KEY.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let others in without a key.")] = False,
    allow_host: Annotated[list[str], typer.Option(help="Host name by which browsers may ask; repeatable.")] = [],  # noqa: B006
    allow_origin: Annotated[list[str], typer.Option(help="Origin of another page that may read; repeatable.")] = [],  # noqa: B006
    chat_template: Annotated[
        str | None, typer.Option(help='File of a Jinja template, or "plain": messages joined by blank lines.')
    ] = None,
    engine: Annotated[
        str, typer.Option(help="event: integers. fixed: nothing but integers. auto: as packed, else event.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Engines that write side by side.", show_default="cores")
    ] = None,
    max_streams: Annotated[int, typer.Option(min=1, help="Texts written at once.")] = 256,
    max_waiting: Annotated[int, typer.Option(min=0, help="Texts that may wait; more are answered with 429.")] = 512,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 131_072,
    max_request_tokens: Annotated[int, typer.Option(min=1, help="Tokens that a request may write in all.")] = 1_048_576,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request's body.")] = 2 << 20,
    max_connections: Annotated[int, typer.Option(min=1, help="Connections; more are answered with 503.")] = 1024,
    read_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds in which a request must be complete.")] = 10.0,
    stall_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds in which a client must read something.")
    ] = 60.0,
    prefix_memory: Annotated[int, typer.Option(min=0, help="MB of states kept for prompts that begin alike.")] = 64,
    session_memory: Annotated[int, typer.Option(min=1, help="MB of sessions kept.")] = 256,
    session_ttl: Annotated[
        float, typer.Option(min=1, help="Seconds after which an unused session is forgotten.")
    ] = 86_400.0,
    state_dir: Annotated[Path | None, typer.Option(help="Folder in which sessions outlive the server.")] = None,
    redis: Annotated[str | None, typer.Option(help="URL of a Redis in which several servers share sessions.")] = None,
) -> None:
    """Serve a model to the usual clients, and a page that shows who fires.

    Limits beside those above: 64 prompts a request, n and best_of at most 64, 16 stop strings of 256 characters, 20 logprobs.
    """
    from ..errors import UsageError, UserError

    try:
        from ..serve.main import serve as run
    except ImportError as error:
        raise UserError(f"the server needs {error.name}: pip install 'spikegpt[serve]'") from None
    from ..serve.settings import Settings

    if "*" in allow_origin:
        raise UsageError("--allow-origin '*' would let any page read; name the origins")
    if engine not in ("auto", "event", "fixed"):
        raise UsageError(f"--engine {engine} cannot be served; choose auto, event or fixed")
    settings = Settings(
        name=name or (Path(model).name if model else "spikegpt"), host=host, port=port, allowed_hosts=tuple(allow_host),
        origins=tuple(allow_origin), key=_key(key_file), chat_template=_template(chat_template),
        engine=engine, workers=workers,
        max_streams=max_streams, max_waiting=max_waiting, max_prompt_tokens=max_prompt_tokens,
        max_request_tokens=max_request_tokens, max_body=max_body, max_connections=max_connections,
        read_timeout=read_timeout, stall_timeout=stall_timeout, prefix_memory=prefix_memory << 20,
        session_memory=session_memory << 20, session_ttl=session_ttl, state_dir=state_dir, redis=redis,
    )  # fmt: skip
    run(model, settings, insecure=insecure, announce=lambda text: print(text, flush=True))


def _key(file: Path | None) -> str | None:
    """The key, from a file or the environment: never from the command line, which others can see."""
    from ..errors import UsageError

    key = os.environ.get("SPIKEGPT_API_KEY") if file is None else file.read_text(encoding="utf-8")
    if key is None:
        return None
    if len(key.strip()) < 8 or not key.strip().isascii():
        raise UsageError("a key must have at least 8 characters, all of them ASCII")
    return key.strip()


def _template(name: str | None) -> str | None:
    return name if name in (None, "plain") else Path(name).read_text(encoding="utf-8")

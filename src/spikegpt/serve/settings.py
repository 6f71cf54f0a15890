"""What a server allows. Every limit is bounded from the start; every refusal names the option that sets it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

PROMPTS, CHOICES, STOPS, STOP_LENGTH, LOGPROBS = 64, 64, 16, 256, 20
"""Fixed by the interface: prompts a request, n and best_of, stop strings and their characters, likeliest tokens."""
HEADER_BYTES = 16 << 10


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A server's settings."""

    name: str = "spikegpt"
    """The model's name to clients."""
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    """Names by which browsers may ask for this server, beside the loopback's and `host`."""
    origins: tuple[str, ...] = ()
    """Origins of other pages that may read answers."""
    key: str | None = field(default=None, repr=False)
    """What clients must show; None: nothing."""
    chat_template: str | None = None
    """Jinja source, or "plain"; None: no chat."""
    engine: str = "auto"
    """auto: in integers only where the model is packed so, else "event"; or "event" or "fixed", as in `loading.load`."""
    workers: int | None = None
    """Engines that write side by side, each with a thread of its own; None: one a core."""
    max_streams: int = 256
    """Texts written at once."""
    max_waiting: int = 512
    """Texts that wait for their turn to begin."""
    max_prompt_tokens: int = 131_072
    max_request_tokens: int = 1_048_576
    """Tokens that all choices of a request may write together."""
    max_body: int = 2 << 20
    """Bytes of a request's body."""
    max_connections: int = 1024
    read_timeout: float = 10.0
    """Seconds in which a request must be complete."""
    stall_timeout: float = 60.0
    """Seconds in which a client must read something of what is written for it."""
    prefix_memory: int = 64 << 20
    """Bytes of states kept for prompts that begin alike; 0: none."""
    session_memory: int = 256 << 20
    """Bytes of sessions kept."""
    session_ttl: float = 24 * 3600.0
    """Seconds after which an unused session is forgotten."""
    state_dir: Path | None = None
    """Where sessions are kept; None: in memory."""
    redis: str | None = None
    """URL of a Redis where sessions are kept, for several servers together."""

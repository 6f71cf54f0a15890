"""From a request's fields to the scheduler's orders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..generation.sampling import Sampling
from ..generation.session import Session
from .schema import Completion
from .service import Service
from .streams import Order


def orders_of(
    service: Service,
    body: Completion,
    prompts: Sequence[np.ndarray],
    choices: int,
    max_tokens: int,
    session: Session | None,
) -> list[Order]:
    """An order a prompt; or, where each text needs its own reading of the prompt, an order a text."""
    settings = [sampling_of(service, body, choice) for choice in range(choices)]
    apart = body.echo or body.spikes  # what is read with the prompt is each text's own
    groups = [(each,) for each in settings] if apart else [tuple(settings)]
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    best = choices > (body.n or 1)
    how: dict[str, Any] = dict(
        max_tokens=max_tokens, stop=stop, logprobs=0 if best and body.logprobs is None else body.logprobs,
        echo=bool(body.echo), ignore_end=body.ignore_eos, interval=body.stream_interval if body.stream else 0,
        spikes="sizes" if body.spikes == "sizes" else "mask" if body.spikes else "none",
        dense=body.dense, session=session, keeps=session is not None,
    )  # fmt: skip
    return [Order(ids=ids, sampling=group, **how) for ids in prompts for group in groups]


def sampling_of(service: Service, body: Any, choice: int) -> Sampling:
    """The settings of one choice; its seed is the request's, plus its number."""

    def value(name: str, default: Any) -> Any:
        given = getattr(body, name)
        return default if given is None else given

    bias = {int(token): amount for token, amount in (body.logit_bias or {}).items()}
    service.check_tokens(bias, "logit_bias")
    return Sampling(
        temperature=value("temperature", 1.0), top_k=value("top_k", 0), top_p=value("top_p", 1.0),
        min_p=value("min_p", 0.0), repetition_penalty=value("repetition_penalty", 1.0),
        presence_penalty=value("presence_penalty", 0.0), frequency_penalty=value("frequency_penalty", 0.0),
        logit_bias=bias, seed=None if body.seed is None else (body.seed + choice) % 2**64,
    )  # fmt: skip

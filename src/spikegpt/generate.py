"""Writing text: prefill the prompt, then one token at a time, out as valid UTF-8 as soon as it is certain.

B rows of a batch, V vocabulary.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import UsageError, UserError
from .evaluate import device_of, evaluating, tokenizer_of
from .sampling import Sampler, make_sampler
from .state import State
from .tokenizer import StreamDecoder, Tokenizer

PREFILL = 512
"""Prompt tokens read at a time, so that a prompt of any length takes constant memory."""

Path = str | os.PathLike[str]


def generate(
    model: Any,
    prompt: str = "",
    *,
    max_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    state: Path | None = None,
    save_state: Path | None = None,
) -> Generation:
    """The model's continuation of `prompt`, as an iterator of pieces of text.

    Ends after `max_tokens` tokens, before the first of the `stop` strings, or at the tokenizer's end of text. Settings
    of the sampler are those of `make_sampler`. `state` is a file to go on from, `save_state` one to write at the end:
    it holds all that was read and written, a stop string included. Without prompt and state a new text begins.
    """
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    sampler = make_sampler(**options, repetition_penalty=repetition_penalty, seed=seed)
    return Generation(model, prompt, sampler, max_tokens, _strings(stop), state, save_state)


def generate_batch(
    model: Any,
    prompts: Sequence[str],
    *,
    max_tokens: int = 256,
    seed: int | Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
    **sampling: float,
) -> list[str]:
    """The continuation of each prompt, decoded as one batch; settings as in `generate`.

    Every row has its own random stream, so a prompt gives what it gives alone with the same seed; a list of seeds has
    one for each prompt (the way to several texts from one prompt).
    """
    rows = complete(model, prompts, max_tokens=max_tokens, seed=seed, stop=stop, **sampling)
    return [row.text for row in rows]


def complete(
    model: Any,
    prompts: Sequence[str],
    *,
    max_tokens: int = 256,
    seed: int | Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
    **sampling: float,
) -> list[Row]:
    """As `generate_batch`, with what is known of each text."""
    seeds = [seed] * len(prompts) if seed is None or isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise UsageError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed, or one for each")
    samplers = [make_sampler(**sampling, seed=own) for own in seeds]  # pyright: ignore[reportArgumentType]
    tokenizer = tokenizer_of(model)
    texts = [_prompt_ids(tokenizer, prompt, []) for prompt in prompts]
    rows = [
        Row(tokenizer, model.config.vocab_size, ids, sampler, max_tokens, _strings(stop))
        for ids, sampler in zip(texts, samplers, strict=True)
    ]
    with torch.inference_mode(), evaluating(model):
        # Each prompt is read by itself: no padding, hence no row that depends on its neighbours' lengths.
        states = [prefill(model, ids[:-1], model.init_state(1)) for ids in texts]
        while live := [i for i, row in enumerate(rows) if row.reason is None]:
            keep = [i for i, state in enumerate(states) if state is not None and i in live]
            batch = State.stack([states[i] for i in keep])
            _decode(model, [rows[i] for i in keep], batch)
    return rows

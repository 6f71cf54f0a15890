"""How the next token is chosen: samplers as callables, built once, so that the decoding loop has no branches.

V vocabulary. Sampling runs on the CPU in float32, so that a seed means the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import UsageError, UserError

Sampler = Callable[[Tensor, Tensor], int]
"""(logits [V], seen [V] bool: the tokens of the text so far) -> the next token."""
Filter = Callable[[Tensor], Tensor]
"""logits [V] -> logits [V], with -inf at tokens that are out."""


def make_sampler(
    *,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
) -> Sampler:
    """A sampler with a random stream of its own; settings that change nothing cost nothing.

    temperature 0 takes the likeliest token. top_k keeps the k likeliest; top_p the fewest whose probability reaches p;
    min_p those at least p times as likely as the likeliest. repetition_penalty divides the positive logits of tokens
    already in the text, and multiplies the negative ones (Keskar et al., 2019). Raises UsageError out of range.
    """
    _check("temperature", temperature, 0 <= temperature < math.inf, "0 (the likeliest token) or above")
    _check("top_k", top_k, top_k >= 0, "0 (off) or above")
    _check("top_p", top_p, 0 < top_p <= 1, "in (0, 1]")
    _check("min_p", min_p, 0 <= min_p <= 1, "in [0, 1]")
    _check("repetition_penalty", repetition_penalty, 0 < repetition_penalty < math.inf, "above 0")
    _check("seed", seed or 0, -(2**63) <= (seed or 0) < 2**64, "a number of 64 bits")
    penalise = _penalty(repetition_penalty) if repetition_penalty != 1 else _no_penalty
    if temperature < 1e-6:
        return lambda logits, seen: int(torch.argmax(penalise(_finite(logits), seen)))
    filters: list[Filter] = [lambda logits: (logits - logits.max()) / temperature]
    if top_k:
        filters.append(_top_k(top_k))
    if top_p < 1:
        filters.append(_top_p(top_p))
    if min_p:
        filters.append(_min_p(min_p))
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)

    def sample(logits: Tensor, seen: Tensor) -> int:
        logits = penalise(_finite(logits), seen)
        for apply in filters:
            logits = apply(logits)
        return _draw(logits, generator)

    return sample


def _check(name: str, value: float, holds: bool, meaning: str) -> None:
    if not holds:
        raise UsageError(f"{name}={value!r} must be {meaning}")


def _finite(logits: Tensor) -> Tensor:
    if not math.isfinite(logits.sum()):
        raise UserError("the model's logits are not finite; its weights may come from a run that diverged")
    return logits


def _no_penalty(logits: Tensor, _seen: Tensor) -> Tensor:
    return logits


def _penalty(strength: float) -> Callable[[Tensor, Tensor], Tensor]:
    def penalise(logits: Tensor, seen: Tensor) -> Tensor:
        return torch.where(seen, torch.where(logits > 0, logits / strength, logits * strength), logits)

    return penalise


def _top_k(k: int) -> Filter:
    def apply(logits: Tensor) -> Tensor:
        least = torch.topk(logits, min(k, logits.numel())).values[-1]
        return logits.masked_fill(logits < least, -math.inf)

    return apply


def _top_p(p: float) -> Filter:
    def apply(logits: Tensor) -> Tensor:
        probabilities = torch.softmax(logits, dim=0)
        # Few tokens usually reach p: sorting those alone is far cheaper than sorting the vocabulary.
        for k in (64, 1024, logits.numel()):
            likeliest = torch.topk(probabilities, min(k, logits.numel())).values
            reached = likeliest.cumsum(0)
            if reached[-1] >= p:
                break
        last = min(int(torch.searchsorted(reached, p)), len(reached) - 1)
        return logits.masked_fill(probabilities < likeliest[last], -math.inf)

    return apply


def _min_p(p: float) -> Filter:
    def apply(logits: Tensor) -> Tensor:
        return logits.masked_fill(logits < logits.max() + math.log(p), -math.inf)

    return apply


def _draw(logits: Tensor, generator: torch.Generator) -> int:
    """A token with the probabilities softmax(logits), by inverting their cumulative sum."""
    cumulative = torch.softmax(logits, dim=0).double().cumsum(0)
    point = torch.rand(1, generator=generator, dtype=torch.float64) * cumulative[-1]
    return int(torch.searchsorted(cumulative, point, right=True))

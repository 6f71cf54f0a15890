"""How the next token is chosen, in plain PyTorch: the specification of the engine's sampler (`engine/csrc/sample.cpp`).

V vocabulary. Sampling runs on the CPU in float32, with random numbers that are the same on every device: a seed writes the
same text whether this or the engine chooses, but for rounding at the edge of a filter.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UsageError, UserError

READING = -1
"""What an engine's turn gives for a text that has more to read."""
NOT_FINITE = -2
"""What it gives where the model's logits are not finite."""

_64 = (1 << 64) - 1
_NEVER = -1e30  # added to a logit, leaves its token without probability
_STEP = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_GREEDY = 1e-6
"""Below this temperature the likeliest token is taken, and no random number is drawn."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of a text. Raises UsageError out of range."""

    temperature: float = 0.8
    """0 takes the likeliest token."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Keep the fewest tokens whose probability, among those that top_k keeps, reaches p."""
    min_p: float = 0.0
    """Keep tokens at least this many times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens already read or written, multiplies negative ones (Keskar et al., 2019)."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens already written."""
    frequency_penalty: float = 0.0
    """Taken from the logits of tokens already written, once for each time."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token -> what is added to its logit."""
    seed: int | None = None
    """The same seed chooses the same tokens; None: another one each time."""

    def __post_init__(self) -> None:
        def check(name: str, holds: bool, meaning: str) -> None:
            if not holds:
                raise UsageError(f"{name}={getattr(self, name)!r} must be {meaning}")

        check("temperature", 0 <= self.temperature < math.inf, "0 (the likeliest token) or above")
        check("top_k", 0 <= self.top_k < 2**31, "0 (off) or above")
        check("top_p", 0 < self.top_p <= 1, "in (0, 1]")
        check("min_p", 0 <= self.min_p <= 1, "in [0, 1]")
        check("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0")
        check("presence_penalty", math.isfinite(self.presence_penalty), "a finite number")
        check("frequency_penalty", math.isfinite(self.frequency_penalty), "a finite number")
        check("seed", -(2**63) <= (self.seed or 0) < 2**64, "a number of 64 bits")
        for token, bias in self.logit_bias.items():
            if token < 0 or not math.isfinite(bias):
                raise UsageError(f"logit_bias: {token}: {bias!r} must be a token of the vocabulary and a finite number")

    def within(self, tokens: int, rows: int) -> Sampling:
        """The same for a model of `rows` logits of which only the first `tokens` stand for a token: others never win."""
        if tokens >= rows:
            return self
        never = dict.fromkeys(range(tokens, rows), _NEVER)
        return dataclasses.replace(self, logit_bias={**self.logit_bias, **never})

    @property
    def remembers(self) -> bool:
        """Whether choices depend on the tokens of the text so far."""
        return self.repetition_penalty != 1 or bool(self.presence_penalty) or bool(self.frequency_penalty)

    def continuing(self, seed: int | None) -> Sampling:
        """The same with this seed, unless a seed is set."""
        return self if self.seed is not None else dataclasses.replace(self, seed=seed)

    def seed_after(self, tokens: int) -> int | None:
        """The seed that continues the random numbers of this one after `tokens` were chosen; None without a seed."""
        if self.seed is None or self.temperature < _GREEDY:
            return self.seed
        return _unmix(_mix(self.random_seed()) + tokens * _STEP & _64)

    def random_seed(self) -> int:
        """The seed as a number in [0, 2^64), a new one where none is set."""
        return secrets.randbits(64) if self.seed is None else self.seed & _64


class Sampler:
    """One text's choices: what it has seen, and a random stream of its own."""

    def __init__(self, settings: Sampling, vocab_size: int) -> None:
        outside = next((token for token in settings.logit_bias if token >= vocab_size), None)
        if outside is not None:
            raise UsageError(f"logit_bias: token {outside} is not in the vocabulary of {vocab_size}")
        self._settings = settings
        self._random = _Random(settings.random_seed())
        self._seen = torch.zeros(vocab_size, dtype=torch.bool)
        self._written = torch.zeros(vocab_size)

    def read(self, ids: Iterable[int]) -> None:
        """Says that the text has these tokens, which were not chosen."""
        self._seen[list(ids)] = True

    def restore(self, counts: Mapping[int, int]) -> None:
        """Says how often the text chose each token before: 0 for those it only read."""
        tokens = list(counts)
        self._seen[tokens] = True
        self._written[tokens] = torch.tensor(list(counts.values()), dtype=torch.float32)

    def choose(self, logits: Tensor) -> int:
        """The next token of the text, after logits [V] float32. Raises UserError where they are not finite."""
        weights = self._weights(logits)
        if isinstance(weights, int):
            token = weights
        else:
            cumulative = weights.double().cumsum(0)
            point = self._random.uniform() * float(cumulative[-1])
            token = int(torch.searchsorted(cumulative, point, right=True))
        self._seen[token] = True
        self._written[token] += 1
        return token

    def _weights(self, logits: Tensor) -> Tensor | int:
        """Weights [V] in the proportion of the tokens' probabilities, or the only token."""
        settings = self._settings
        if not math.isfinite(logits.sum()):
            raise not_finite()
        logits = self._adjusted(logits)
        if settings.temperature < _GREEDY:
            return int(torch.argmax(logits))
        weights = torch.exp((logits - logits.max()) * (1 / settings.temperature))
        if 0 < settings.top_k < len(weights):
            weights = _from(weights, torch.topk(weights, settings.top_k).values[-1])
        if settings.top_p < 1:
            weights = _from(weights, _reaching(weights, settings.top_p))
        return _from(weights, settings.min_p)

    def _adjusted(self, logits: Tensor) -> Tensor:
        settings = self._settings
        if settings.repetition_penalty != 1:
            strength = settings.repetition_penalty
            logits = torch.where(self._seen, torch.where(logits > 0, logits / strength, logits * strength), logits)
        if settings.frequency_penalty or settings.presence_penalty:
            logits = logits - settings.frequency_penalty * self._written
            logits = logits - settings.presence_penalty * (self._written > 0)
        if settings.logit_bias:
            logits = logits.clone()
            for token, bias in settings.logit_bias.items():
                logits[token] += bias
        return logits


def not_finite() -> UserError:
    """The error of a model that predicts no numbers."""
    return UserError("the model's logits are not finite; its weights may come from a run that diverged")


def _from(weights: Tensor, least: Tensor | float) -> Tensor:
    """Weights [V], those below the least at 0."""
    return weights.masked_fill(weights < least, 0)


def _reaching(weights: Tensor, p: float) -> Tensor:
    """The last weight, from the largest on, that is needed to reach the share p of all."""
    # Few tokens usually reach p: sorting those alone is far cheaper than sorting the vocabulary.
    need = p * weights.double().sum()
    for k in (64, 1024, weights.numel()):
        likeliest = torch.topk(weights, min(k, weights.numel())).values
        reached = likeliest.double().cumsum(0)
        if reached[-1] >= need:
            break
    return likeliest[min(int(torch.searchsorted(reached, need)), len(reached) - 1)]


class _Random:
    """SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), from a seed that is mixed once."""

    def __init__(self, seed: int) -> None:
        self._state = _mix(seed)

    def uniform(self) -> float:
        """A number in [0, 1)."""
        self._state = (self._state + _STEP) & _64
        return (_mix(self._state) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z = (z ^ z >> 30) * _FIRST & _64
    z = (z ^ z >> 27) * _SECOND & _64
    return z ^ z >> 31


def _unmix(z: int) -> int:
    """The inverse of `_mix`."""
    z = (z ^ z >> 31 ^ z >> 62) * pow(_SECOND, -1, 1 << 64) & _64
    z = (z ^ z >> 27 ^ z >> 54) * pow(_FIRST, -1, 1 << 64) & _64
    return z ^ z >> 30 ^ z >> 60

"""The operators that run along time, one door each: `wkv`, `lif`, `event` (and `spike`, which needs no time).

Backends: "reference" (plain PyTorch, the specification), "native" (C++ on the CPU). "auto" takes native where it is
built and the tensors are float32 (or narrower) on the CPU, else reference; an explicit choice is never swapped.
Shapes: B batch, T time in tokens, C channels. Half-width inputs are computed, and returned, in float32.
"""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError
from . import native, reference

__all__ = ["BACKENDS", "available", "event", "lif", "linear", "spike", "wkv"]

BACKENDS = ("auto", "reference", "native")

FEW_ROWS = 8
"""Most vectors that `linear` multiplies one by one."""

START_EXPONENT = -1e38
"""Max exponent of a WKV state that has seen nothing."""


def available() -> dict[str, str | bool]:
    """Backends by name: True, or the reason why one cannot be used."""
    return {"reference": True, "native": native.MISSING or True}


def linear(x: Tensor, weight: Tensor, *, backend: str = "auto") -> Tensor:
    """x [..., N] times weight [M, N] transposed.

    Decoding is bound by the reading of the weights: few rows without gradients have a kernel of their own, which reads
    them about twice as fast as a general matrix product. Everything else is PyTorch's.
    """
    decoding = x.numel() <= FEW_ROWS * x.shape[-1] and not torch.is_autocast_enabled(x.device.type)
    usable = native.MISSING is None and native.is_direct(x, weight) and _unfit((x, weight)) is None
    if decoding and usable and weight.is_contiguous() and backend in ("auto", "native"):
        return native.linear(x, weight)
    return torch.nn.functional.linear(x, weight)


def wkv(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """RWKV-4's weighted average of the values seen so far (Peng et al., arXiv 2305.13048), with a running maximum.

    Args:
        decay: [C], change of every weight's exponent per token, -exp(time_decay), below 0.
        first: [C], bonus of the current token's exponent (time_first).
        k, v: [B, T, C], keys (exponents) and values.
        state: [B, 3, C], numerator, denominator, max exponent left by the tokens before; None: none were.
    Returns:
        y [B, T, C] and the state after the last token; gradients flow to every input, through the state too.
    """
    batch, time, channels = _dimensions(k)
    _expect("v", v, (batch, time, channels))
    _expect("decay", decay, (channels,))
    _expect("first", first, (channels,))
    if state is None:
        state = k.new_zeros(batch, 3, channels, dtype=_widest(k))
        state[:, 2] = START_EXPONENT
    _expect("state", state, (batch, 3, channels))
    inputs = _promote(decay, first, k, v, state)
    return _pick(backend, *inputs).wkv(*inputs)


def spike(z: Tensor, alpha: float = 2.0) -> Tensor:
    """H(z): 1 where z >= 0, else 0, in any shape; ATan surrogate dH/dz = (alpha/2) / (1 + (pi/2 alpha z)^2)."""
    return reference.spike(z, float(alpha))


def lif(
    x: Tensor,
    membrane: Tensor | None = None,
    *,
    tau: float = 2.0,
    threshold: float = 1.0,
    alpha: float = 2.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Leaky integrate-and-fire with a hard reset to 0: H = V + (X - V) / tau, S = [H >= threshold], V = (1 - S) H.

    Args:
        x: [B, T, C], input current.
        membrane: [B, C], V left by the tokens before; None: 0.
        tau: time constant in tokens. threshold: of firing. alpha: steepness of the ATan surrogate (see `spike`).
    Returns:
        spikes [B, T, C] of 0 and 1, and the membrane [B, C] after the last token; the gradient flows through the reset.
    """
    batch, _, channels = _dimensions(x)
    if membrane is None:
        membrane = x.new_zeros(batch, channels, dtype=_widest(x))
    _expect("membrane", membrane, (batch, channels))
    x, membrane = _promote(x, membrane)
    return _pick(backend, x, membrane).lif(x, membrane, float(tau), float(threshold), float(alpha))


def event(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    leak: Tensor | None = None,
    membrane: Tensor | None = None,
    *,
    levels: int = 15,
    signed: bool = True,
    reset: Literal["hard", "soft"] = "hard",
    window: float = 0.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Graded events: H = leak M + X; n = sign(H) min(ceil(max(|H| - threshold, 0) / unit), levels).

    The membrane M is then H where n = 0, else 0 (hard reset) or H - n unit (soft). An event stands for n unit.
    dn/dH = 1/unit where threshold (1 - window) < |H| <= threshold (1 + window) + levels unit, else 0; it flows through
    the soft reset, and a hard one cuts the membrane's gradient.

    Args:
        x: [B, T, C], input current.
        threshold, unit: [C], positive, without gradient.
        leak: [C] in [0, 1), share of the membrane kept per token; None: memoryless (`membrane` comes back untouched).
        membrane: [B, C], M left by the tokens before; None: 0.
        levels: largest event. signed: whether |H| or only a positive H fires. reset: "hard" or "soft".
        window: slack of the gradient, in thresholds.
    Returns:
        events [B, T, C], integer-valued, and the membrane [B, C] after the last token.
    """
    if reset not in ("hard", "soft"):
        raise ValueError(f"reset={reset!r} is not one of 'hard', 'soft'")
    batch, _, channels = _dimensions(x)
    if membrane is None:
        membrane = x.new_zeros(batch, channels, dtype=_widest(x))
    _expect("membrane", membrane, (batch, channels))
    _expect("threshold", threshold, (channels,))
    _expect("unit", unit, (channels,))
    x, threshold, unit, membrane = _promote(x, threshold.detach(), unit.detach(), membrane)
    if leak is not None:
        _expect("leak", leak, (channels,))
        leak = leak.to(x.dtype)
    kernels = _pick(backend, x, threshold, unit, membrane)
    return kernels.event(x, threshold, unit, leak, membrane, int(levels), signed, reset == "hard", float(window))


def _widest(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _promote(*tensors: Tensor) -> list[Tensor]:
    dtype = _widest(*tensors)
    return [t.to(dtype) for t in tensors]


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")


def _dimensions(tensor: Tensor) -> tuple[int, int, int]:
    if tensor.dim() != 3:
        raise ValueError(f"expected [B, T, C], got shape {tuple(tensor.shape)}")
    batch, time, channels = tensor.shape
    return batch, time, channels


def _pick(backend: str, *tensors: Tensor) -> ModuleType:
    if backend not in BACKENDS:
        raise UserError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return reference
    reason = native.MISSING or _unfit(tensors)
    if reason is None:
        return native
    if backend == "native":
        raise UserError(f"the native operators cannot be used: {reason}")
    if native.MISSING and tensors[0].device.type == "cpu" and not torch.compiler.is_compiling():
        _warn_once()
    return reference


def _unfit(tensors: tuple[Tensor, ...]) -> str | None:
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"they run on the CPU, and a tensor is on {tensor.device}"
        if tensor.dtype != torch.float32:
            return f"they compute in float32, and a tensor is {tensor.dtype}"
    return None


_warned = False


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"operators run in plain PyTorch, about 100 times slower: {native.MISSING}", stacklevel=4)

"""The operators that run along time, one function each: `wkv`, `lif`, `event`, and the fused passes around them.

`gated_wkv`, `lif_add`, `shift_mix`, `relu_squared`, `gate`, `dropout`, `cross_entropy` and `divergence` do in one pass over
memory what plain PyTorch does in several; `spike` is the step function alone, `linear` a matrix product, `tally` counts
events.

Backends: "reference" (plain PyTorch, the specification), "native" (C++ on the CPU), "triton" (GPUs), or "auto"; see
`dispatch`. Shapes: B batch, T time in tokens, C channels. Half-width inputs are computed in float32, and returned so unless
another `dtype` is asked for. Arguments of the wrong shape or type are a ValueError, a backend that cannot take them a
UserError; docs/ops.md lists what is checked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NoReturn

import torch
from torch import Tensor

from . import native, reference
from .checks import (
    IGNORED,
    dimensions,
    expect,
    expect_between,
    expect_classes,
    expect_mixes,
    expect_targets,
    floating,
    widest,
)
from .dispatch import BACKENDS, available, choose, require, resolve

__all__ = [
    "BACKENDS", "IGNORED", "available", "cross_entropy", "divergence", "dropout", "event", "gate", "gated_wkv", "lif",
    "lif_add", "linear", "matrix_dtype", "relu_squared", "require", "resolve", "shift_mix", "spike", "tally", "wkv",
]  # fmt: skip

FEW_ROWS = 8
"""Most vectors that `linear` multiplies one by one."""

MOST_LEVELS = 2**23
"""Largest event: float32 has no fraction beyond it that could be rounded up."""

START_EXPONENT = -1e38
"""Max exponent of a WKV state that has seen nothing."""


def linear(x: Tensor, weight: Tensor, scale: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """x [..., N] times weight [M, N] transposed.

    scale: [1], what an event of 1 stands for: the product of events x, integers of at most 127 either way, is multiplied by
    it. No gradient flows to it.

    Decoding is bound by the reading of the weights: up to `FEW_ROWS` vectors without gradients have a native kernel, which
    reads them about twice as fast as a general matrix product. Everything else is PyTorch's product, on every backend.
    """
    inputs = x.shape[-1] if x.dim() else -1
    if weight.dim() != 2 or inputs != weight.shape[1]:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit; expected [..., N] and [M, N]"
        )
    if scale is not None:
        expect("scale", scale, (1,))
    kernels = choose(backend, x, weight)
    if kernels is native and x.numel() <= FEW_ROWS * inputs and native.takes_product(x, weight):
        product = native.linear(x, weight)
        return product if scale is None else product * scale
    return torch.nn.functional.linear(x, weight) if scale is None else reference.event_linear(x, weight, scale)


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
    inputs = _wkv_inputs(decay, first, k, v, state)
    return choose(backend, *inputs).wkv(*inputs)


def gated_wkv(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor | None = None, *,
    dtype: torch.dtype | None = None, backend: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """sigmoid(gate) times y of `wkv`, in `dtype` (None: that of y), and the state; gate [B, T, C]."""
    expect("gate", gate, dimensions(k))
    inputs = *_wkv_inputs(decay, first, k, v, state), gate
    kernels = choose(backend, *inputs)
    return kernels.gated_wkv(*inputs, widest(*inputs) if dtype is None else floating(dtype, k.dtype))


def _wkv_inputs(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, time, channels = dimensions(k)
    expect("v", v, (batch, time, channels))
    expect("decay", decay, (channels,))
    expect("first", first, (channels,))
    if state is None:
        state = k.new_zeros(batch, 3, channels, dtype=widest(k))
        state[:, 2] = START_EXPONENT
    expect("state", state, (batch, 3, channels))
    return decay, first, k, v, state


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
    membrane = _membrane(x, membrane)
    return choose(backend, x, membrane).lif(x, membrane, *_lif_settings(tau, threshold, alpha))


def lif_add(
    x: Tensor,
    residual: Tensor,
    membrane: Tensor | None = None,
    *,
    tau: float = 2.0,
    threshold: float = 1.0,
    alpha: float = 2.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """residual [B, T, C] + the spikes of `lif`, in the residual's type, and the membrane."""
    expect("residual", residual, dimensions(x))
    membrane = _membrane(x, membrane)
    settings = _lif_settings(tau, threshold, alpha)
    return choose(backend, x, membrane, residual).lif_add(x, residual, membrane, *settings)


def _lif_settings(tau: float, threshold: float, alpha: float) -> tuple[float, float, float]:
    if not tau > 0:
        raise ValueError(f"tau={tau!r} must be above zero")
    return float(tau), float(threshold), float(alpha)


def _membrane(x: Tensor, membrane: Tensor | None) -> Tensor:
    batch, _, channels = dimensions(x)
    if membrane is None:
        return x.new_zeros(batch, channels, dtype=widest(x))
    expect("membrane", membrane, (batch, channels))
    return membrane


def event(
    x: Tensor,
    threshold: Tensor,
    unit: Tensor,
    leak: Tensor | None = None,
    membrane: Tensor | None = None,
    *,
    levels: int = 15,
    smallest: int = 1,
    signed: bool = True,
    reset: Literal["hard", "soft"] = "hard",
    window: float = 0.0,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Graded events: H = leak M + X; n = sign(H) min(ceil(max(|H| - threshold, 0) / unit), levels), 0 where |n| < smallest.

    The membrane M is then H where n = 0, else 0 (hard reset) or H - n unit (soft). An event stands for n unit.
    dn/dH = 1/unit where onset - threshold window < |H| <= threshold (1 + window) + levels unit, else 0, with
    onset = threshold + (smallest - 1) unit; it flows through the soft reset, and a hard one cuts the membrane's gradient.
    smallest > 1 makes events jump from 0 to `smallest` at the onset (JumpReLU, arXiv 2407.14435): a large input is
    shrunk by one threshold, but no weights are read for what is barely above it.

    Args:
        x: [B, T, C], input current.
        threshold, unit: [C], positive, without gradient.
        leak: [C] in [0, 1), fraction of the membrane kept per token; None: memoryless (`membrane` comes back untouched).
        membrane: [B, C], M left by the tokens before; None: 0.
        levels: largest event. smallest: smallest one that is sent. signed: whether |H| or only a positive H fires.
        reset: "hard" or "soft".
        window: slack of the gradient, in thresholds.
        dtype: of the events; None: that of the computation. Half types hold integers to 256 exactly.
    Returns:
        events [B, T, C], integer-valued, and the membrane [B, C] after the last token.
    """
    if reset not in ("hard", "soft"):
        raise ValueError(f"reset={reset!r} is not one of 'hard', 'soft'")
    if not (1 <= smallest <= levels <= MOST_LEVELS and 0 <= window < math.inf):
        _refuse_event_settings(levels, smallest, window)
    channels = dimensions(x)[2]
    expect("threshold", threshold, (channels,))
    expect("unit", unit, (channels,))
    membrane = _membrane(x, membrane)
    tensors = x, threshold, unit, membrane
    if leak is not None:
        expect("leak", leak, (channels,))
        tensors = *tensors, leak
    kernels = choose(backend, *tensors)
    dtype = widest(*tensors) if dtype is None else floating(dtype, x.dtype)
    settings = int(levels), int(smallest), signed, reset == "hard", float(window), dtype
    return kernels.event(x, threshold.detach(), unit.detach(), leak, membrane, *settings)


def _refuse_event_settings(levels: int, smallest: int, window: float) -> NoReturn:
    expect_between("levels", levels, 1, MOST_LEVELS)
    expect_between("smallest", smallest, 1, levels)
    raise ValueError(f"window={window!r} must be at least 0 and finite")


def tally(events: Tensor, levels: int, *, backend: str = "auto") -> Tensor:
    """How many events [..., C] are not 0, and how many are the largest, `levels`: [2] integers."""
    expect_between("levels", levels, 1, MOST_LEVELS)
    if events.dim() == 0:
        raise ValueError("events are a scalar, expected [..., C]")
    return choose(backend, events).tally(events, levels)


def shift_mix(
    x: Tensor, last: Tensor, mixes: Sequence[Tensor], *, dtype: torch.dtype | None = None, backend: str = "auto"
) -> tuple[Tensor, ...]:
    """Token shift and mix: x_t mix + x_{t-1} (1 - mix), for each of at most three mixes.

    Args:
        x: [B, T, C]. last: [B, C], the token before the first. mixes: [C], or [1, 1, C].
        dtype: of the results; None: that of x.
    """
    batch, _, channels = dimensions(x)
    expect("last", last, (batch, channels))
    expect_mixes(mixes, channels)
    return choose(backend, x, last, *mixes).shift_mix(x, last, mixes, floating(dtype, x.dtype))


def relu_squared(x: Tensor, *, dtype: torch.dtype | None = None, backend: str = "auto") -> Tensor:
    """max(x, 0)^2 in any shape, in `dtype` (None: that of x)."""
    return choose(backend, x).relu_squared(x, floating(dtype, x.dtype))


def gate(opening: Tensor, x: Tensor, *, dtype: torch.dtype | None = None, backend: str = "auto") -> Tensor:
    """sigmoid(opening) times x, of one shape, in `dtype` (None: that of x)."""
    expect("opening", opening, tuple(x.shape))
    return choose(backend, opening, x).gate(opening, x, floating(dtype, x.dtype))


def dropout(x: Tensor, p: float, *, backend: str = "auto") -> Tensor:
    """x / (1 - p), with a fraction p of it, in [0, 1), set to 0; torch's random state chooses which. For training."""
    if not 0 <= p < 1:
        raise ValueError(f"p={p!r} must be in [0, 1)")
    return choose(backend, x).dropout(x, float(p))


def cross_entropy(logits: Tensor, targets: Tensor, penalty: float = 0.0, *, backend: str = "auto") -> Tensor:
    """Mean cross entropy in nats of logits [..., V] at targets [...] int64, a scalar.

    Positions whose target is `IGNORED` (-100) do not count: the mean is over the others (NaN if there are none), and their
    logits get no gradient. The gradient has one term that the value has not: the largest logit m of each position that
    counts gets m * `penalty` / counted positions more, which keeps logits from drifting upwards together.

    Any other target outside 0 to V - 1 is an IndexError on the CPU; on a GPU, where checking would make the CPU wait, Triton's
    kernel reads nothing and gives NaN.
    """
    expect_targets(targets, logits)
    return choose(backend, logits).cross_entropy(logits, targets, float(penalty))


def divergence(logits: Tensor, teacher: Tensor, *, backend: str = "auto") -> Tensor:
    """Mean Kullback-Leibler divergence in nats of softmax(logits) from softmax(teacher), both [..., V]: a scalar.

    No gradient flows to the teacher.
    """
    expect("teacher", teacher, tuple(logits.shape))
    expect_classes(logits)
    return choose(backend, logits, teacher).divergence(logits, teacher.detach())


def matrix_dtype(x: Tensor) -> torch.dtype:
    """The type that a matrix product casts x to: autocast's, or else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype

"""The operators that run along time, one door each: `wkv`, `lif`, `event`, and what stands around them.

`gated_wkv`, `lif_add`, `shift_mix`, `relu_squared`, `gate`, `dropout`, `cross_entropy` and `divergence` do in one pass over
memory what plain PyTorch does in several; `spike` is the jump alone, `linear` a matrix product, `tally` counts events.

Backends: "reference" (plain PyTorch, the specification), "native" (C++ on the CPU), "triton" (GPUs). "auto" takes
native on the CPU and triton on a GPU where they are there and the tensors are float32 or narrower, else reference; an
explicit choice is never swapped. Shapes: B batch, T time in tokens, C channels. Half-width inputs are computed in
float32, and returned so unless another `dtype` is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from ..errors import UsageError, UserError
from ..ops import native, reference, triton

__all__ = [
    "BACKENDS", "available", "cross_entropy", "divergence", "dropout", "event", "gate", "gated_wkv", "lif", "lif_add", "linear",
    "matrix_dtype", "relu_squared", "require", "shift_mix", "spike", "tally", "wkv",
]  # fmt: skip

BACKENDS = ("auto", "reference", "native", "triton")

NARROW = (torch.float32, torch.bfloat16, torch.float16)
"""Types that kernels computing in float32 take."""

FEW_ROWS = 8
"""Most vectors that `linear` multiplies one by one."""

START_EXPONENT = -1e38
"""Max exponent of a WKV state that has seen nothing."""


def available() -> dict[str, str | bool]:
    """Backends by name: True, or the reason why one cannot be used."""
    no_device = None if triton.INTERPRETED or torch.cuda.is_available() else "there is no GPU"
    return {"reference": True, "native": native.MISSING or True, "triton": triton.MISSING or no_device or True}


def require(backend: str) -> None:
    """A UsageError for a backend that does not exist, a UserError for one that cannot be used here."""
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    missing = {"native": native.MISSING, "triton": triton.MISSING}.get(backend)
    if missing:
        raise UserError(f"the {backend} operators cannot be used: {missing}")


def linear(x: Tensor, weight: Tensor, *, backend: str = "auto") -> Tensor:
    """x [..., N] times weight [M, N] transposed.

    Decoding is bound by the reading of the weights: few rows without gradients have a kernel of their own, which reads
    them about twice as fast as a general matrix product. Everything else is PyTorch's.
    """
    few = x.numel() <= FEW_ROWS * x.shape[-1] and backend in ("auto", "native") and native.MISSING is None
    usable = few and native.is_direct(x, weight) and _unfit((x, weight)) is None and weight.is_contiguous()
    if usable and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
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
    kernels, inputs = _choose(backend, *_wkv_inputs(decay, first, k, v, state))
    return kernels.wkv(*inputs)


def gated_wkv(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor | None = None, *,
    dtype: torch.dtype | None = None, backend: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """sigmoid(gate) times y of `wkv`, in `dtype` (None: that of y), and the state; gate [B, T, C]."""
    _expect("gate", gate, _dimensions(k))
    kernels, inputs = _choose(backend, *_wkv_inputs(decay, first, k, v, state), gate)
    return kernels.gated_wkv(*inputs, dtype or _widest(*inputs))


def _wkv_inputs(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, time, channels = _dimensions(k)
    _expect("v", v, (batch, time, channels))
    _expect("decay", decay, (channels,))
    _expect("first", first, (channels,))
    if state is None:
        state = k.new_zeros(batch, 3, channels, dtype=_widest(k))
        state[:, 2] = START_EXPONENT
    _expect("state", state, (batch, 3, channels))
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
    kernels, inputs = _choose(backend, x, _membrane(x, membrane))
    return kernels.lif(*inputs, float(tau), float(threshold), float(alpha))


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
    _expect("residual", residual, _dimensions(x))
    kernels, (given, membrane) = _choose(backend, x, _membrane(x, membrane))
    if kernels is native and residual.dtype != torch.float32:
        kernels = reference
    return kernels.lif_add(given, residual, membrane, float(tau), float(threshold), float(alpha))


def _membrane(x: Tensor, membrane: Tensor | None) -> Tensor:
    batch, _, channels = _dimensions(x)
    if membrane is None:
        return x.new_zeros(batch, channels, dtype=_widest(x))
    _expect("membrane", membrane, (batch, channels))
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
        leak: [C] in [0, 1), share of the membrane kept per token; None: memoryless (`membrane` comes back untouched).
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
    channels = _dimensions(x)[2]
    _expect("threshold", threshold, (channels,))
    _expect("unit", unit, (channels,))
    kernels, inputs = _choose(backend, x, threshold.detach(), unit.detach(), _membrane(x, membrane))
    x, threshold, unit, membrane = inputs
    if leak is not None:
        _expect("leak", leak, (channels,))
        leak = leak.to(membrane.dtype)
    settings = int(levels), int(smallest), signed, reset == "hard", float(window)
    if kernels is not reference:
        return kernels.event(x, threshold, unit, leak, membrane, *settings, dtype or torch.float32)
    events, after = kernels.event(x, threshold, unit, leak, membrane, *settings)
    return events.to(dtype or events.dtype), after


def tally(events: Tensor, levels: int, *, backend: str = "auto") -> Tensor:
    """How many events [..., C] are not 0, and how many are the largest, `levels`: [2] integers."""
    return _without_triton(backend, events).tally(events, levels)


def shift_mix(
    x: Tensor, last: Tensor, mixes: Sequence[Tensor], *, dtype: torch.dtype | None = None, backend: str = "auto"
) -> tuple[Tensor, ...]:
    """Token shift and mix: x_t mix + x_{t-1} (1 - mix), for each of at most three mixes.

    Args:
        x: [B, T, C]. last: [B, C], the token before the first. mixes: [C], or [1, 1, C].
        dtype: of the results; None: that of x.
    """
    batch, _, channels = _dimensions(x)
    _expect("last", last, (batch, channels))
    if not 1 <= len(mixes) <= 3:
        raise ValueError(f"{len(mixes)} mixes, expected 1 to 3")
    if _on_triton(backend, x, last, *mixes):
        return triton.shift_mix(x, last, torch.stack([mix.flatten() for mix in mixes]), dtype or x.dtype)
    return _without_triton(backend, x, last, *mixes).shift_mix(x, last, mixes, dtype or x.dtype)


def relu_squared(x: Tensor, *, dtype: torch.dtype | None = None, backend: str = "auto") -> Tensor:
    """max(x, 0)^2 in any shape, in `dtype` (None: that of x)."""
    if _on_triton(backend, x):
        return triton.relu_squared(x, dtype or x.dtype)
    return _without_triton(backend, x).relu_squared(x, dtype or x.dtype)


def gate(opening: Tensor, x: Tensor, *, dtype: torch.dtype | None = None, backend: str = "auto") -> Tensor:
    """sigmoid(opening) times x, of one shape, in `dtype` (None: that of x)."""
    _expect("opening", opening, tuple(x.shape))
    if _on_triton(backend, opening, x):
        return triton.gate(opening, x, dtype or x.dtype)
    return _without_triton(backend, opening, x).gate(opening, x, dtype or x.dtype)


def dropout(x: Tensor, p: float, *, backend: str = "auto") -> Tensor:
    """x / (1 - p), with a share p of it set to 0, chosen by torch's random state; for training."""
    return _without_triton(backend, x).dropout(x, float(p))


def cross_entropy(logits: Tensor, targets: Tensor, penalty: float = 0.0, *, backend: str = "auto") -> Tensor:
    """Mean cross entropy in nats of logits [..., V] at targets [...] int64, a scalar.

    Its gradient has one term that its value has not: each position's largest logit m gets m * `penalty` / positions
    more, which keeps logits from drifting upwards together.
    """
    _expect("targets", targets, tuple(logits.shape[:-1]))
    if _on_triton(backend, logits):
        return triton.cross_entropy(logits, targets, float(penalty))
    return _without_triton(backend, logits).cross_entropy(logits, targets, float(penalty))


def divergence(logits: Tensor, teacher: Tensor, *, backend: str = "auto") -> Tensor:
    """Mean Kullback-Leibler divergence in nats of softmax(logits) from softmax(teacher), both [..., V]: a scalar.

    No gradient flows to the teacher.
    """
    _expect("teacher", teacher, tuple(logits.shape))
    return _without_triton(backend, logits, teacher).divergence(logits, teacher.detach())


def matrix_dtype(x: Tensor) -> torch.dtype:
    """The type that a matrix product casts x to: autocast's, or else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


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


def _choose(backend: str, *tensors: Tensor) -> tuple[ModuleType, Sequence[Tensor]]:
    """The kernels to use, and the tensors as they take them: the reference wants one wide type."""
    if backend not in BACKENDS:
        require(backend)
    if backend != "reference" and backend != "triton" and native.MISSING is None and _unfit(tensors) is None:
        return native, tensors  # at once: decoding comes here for every operator of every token
    device = tensors[0].device
    for tensor in tensors:
        if tensor.device != device:
            raise UserError(
                f"tensors are on {device} and on {tensor.device}; move model, tokens and state to one device"
            )
    if _on_triton(backend, *tensors):
        return triton, tensors
    kernels = _pick(backend, tensors)
    return kernels, tensors if kernels is native else _promote(*tensors)


def _on_triton(backend: str, *tensors: Tensor) -> bool:
    """Whether Triton's kernels are to be used; a UserError if they were chosen and cannot be."""
    if backend != "triton" and (backend != "auto" or tensors[0].device.type != "cuda"):
        return False
    reason = triton.MISSING or triton.unfit(tensors)
    if reason and backend == "triton":
        raise UserError(f"the Triton operators cannot be used: {reason}")
    if reason:
        _warn_once(triton.MISSING)
    return reason is None


def _without_triton(backend: str, *tensors: Tensor) -> ModuleType:
    """The kernels to use for what Triton has no kernel for."""
    if backend not in BACKENDS:
        require(backend)
    return reference if backend == "triton" else _pick(backend, tensors)


def _pick(backend: str, tensors: Sequence[Tensor]) -> ModuleType:
    """Native kernels or the reference."""
    if backend == "reference":
        return reference
    reason = native.MISSING or _unfit(tensors)
    if reason is None:
        return native
    if backend == "native":
        raise UserError(f"the native operators cannot be used: {reason}")
    if tensors[0].device.type == "cpu":
        _warn_once(native.MISSING)
    return reference


def _unfit(tensors: Sequence[Tensor]) -> str | None:
    for tensor in tensors:
        if not tensor.is_cpu:
            return f"they run on the CPU, and a tensor is on {tensor.device}"
        if tensor.dtype not in NARROW:
            return f"they compute in float32, and a tensor is {tensor.dtype}"
    return None


_warned = False


def _warn_once(missing: str | None) -> None:
    """That a fast backend is not there at all."""
    global _warned
    if missing and not _warned and not torch.compiler.is_compiling():
        _warned = True
        warnings.warn(f"operators run in plain PyTorch, about 100 times slower: {missing}", stacklevel=5)

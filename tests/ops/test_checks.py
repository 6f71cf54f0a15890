"""What operators are given is checked before it reaches memory: shapes, types, devices, targets, settings, the backend."""

import math

import pytest
import torch

from spikegpt import ops
from spikegpt.errors import UsageError, UserError
from spikegpt.ops import dispatch, native, reference, triton

needs_native = pytest.mark.skipif(native.MISSING is not None, reason=f"native operators: {native.MISSING}")
without_triton = pytest.mark.skipif(
    triton.MISSING is None and triton.unfit([torch.zeros(1)]) is None, reason="Triton takes tensors of the CPU here"
)
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
HALF = torch.bfloat16
ONES = torch.ones(3)
X = torch.ones(1, 2, 3)


def logits_and_targets(rows=6, classes=70, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, rows, classes, generator=generator) * 3).to(dtype).requires_grad_()
    return logits, torch.randint(classes, (2, rows), generator=generator)


# Targets


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_ignored_positions_do_not_count(backend, dtype):
    logits, targets = logits_and_targets(dtype=dtype)
    keep = torch.ones_like(targets, dtype=torch.bool)
    keep[0, 2] = keep[1, 0] = keep[1, 5] = False
    holed = targets.masked_fill(~keep, ops.IGNORED)
    loss = ops.cross_entropy(logits, holed, 0.5, backend=backend)
    (gradient,) = torch.autograd.grad(loss * 3, logits)
    kept = logits.detach()[keep].double().requires_grad_()
    expected = ops.cross_entropy(kept, targets[keep], 0.5, backend="reference")
    plain = torch.nn.functional.cross_entropy(logits.detach().double().flatten(0, 1), holed.flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6) == pytest.approx(plain.item(), rel=1e-6)
    assert not gradient[~keep].any()
    (wanted,) = torch.autograd.grad(expected * 3, kept)
    assert torch.allclose(gradient[keep].double(), wanted, rtol=2**-7 if dtype == HALF else 1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_stands_at_an_ignored_position_does_not_matter(backend):
    logits, targets = logits_and_targets()
    targets[0, 0] = ops.IGNORED
    with torch.no_grad():
        logits[0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    loss = ops.cross_entropy(logits, targets, 0.1, backend=backend)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and gradient.isfinite().all() and not gradient[0, 0].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mean_over_nothing_is_nan_as_in_torch(backend):
    logits, targets = logits_and_targets()
    loss = ops.cross_entropy(logits, torch.full_like(targets, ops.IGNORED), backend=backend)
    assert loss.isnan()
    assert not torch.autograd.grad(loss, logits)[0].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", [-1, -99, -101, 70, 10**12, -(2**63)])
def test_a_target_outside_of_the_vocabulary_is_refused(backend, wrong):
    logits, targets = logits_and_targets()
    targets[1, 3] = wrong
    with pytest.raises(IndexError, match=rf"target {wrong} is neither 0 to 69 nor -100 \(ignored\)"):
        ops.cross_entropy(logits, targets, backend=backend)
    with torch.no_grad(), pytest.raises(IndexError, match=f"target {wrong}"):
        ops.cross_entropy(logits, targets, backend=backend)


@needs_native
@pytest.mark.filterwarnings("ignore")
def test_a_target_is_refused_in_a_compiled_function():
    logits, targets = logits_and_targets()
    compiled = torch.compile(ops.cross_entropy, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits, targets), ops.cross_entropy(logits, targets))
    targets[0, 0] = 70
    with pytest.raises(IndexError, match="target 70"):
        compiled(logits, targets)


@pytest.mark.parametrize("backend", BACKENDS)
def test_targets_are_int64_and_one_a_row(backend):
    logits, targets = logits_and_targets()
    with pytest.raises(ValueError, match=r"targets have type torch\.int32, expected torch\.int64"):
        ops.cross_entropy(logits, targets.int(), backend=backend)
    with pytest.raises(ValueError, match=r"logits have shape \(2, 0\), expected \[\.\.\., V\] with V above 0"):
        ops.cross_entropy(torch.zeros(2, 0), torch.zeros(2, dtype=torch.int64), backend=backend)
    with pytest.raises(UserError, match=r"logits are on cpu and targets on meta; move"):
        ops.cross_entropy(logits, targets.to("meta"), backend=backend)


# Shapes, types and devices: each of these read memory that was not the tensor's, or ignored what it was given


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_shapes_that_do_not_fit_are_refused(backend):
    with pytest.raises(ValueError, match=r"x \(1, 100\) and weight \(4, 8\) do not fit"):
        ops.linear(torch.zeros(1, 100), torch.zeros(4, 8), backend=backend)
    with pytest.raises(ValueError, match=r"a mix has shape \(2,\), expected \(3,\) or \(1, 1, 3\)"):
        ops.shift_mix(X, X[:, 0], [ONES, ONES[:2]], backend=backend)
    with pytest.raises(ValueError, match=r"a mix has shape \(3, 1\)"):
        ops.shift_mix(X, X[:, 0], [ONES[:, None]], backend=backend)
    with pytest.raises(ValueError, match=r"residual has shape \(1, 3\), expected \(1, 2, 3\)"):
        ops.lif_add(X, X[:, 0], backend=backend)
    with pytest.raises(ValueError, match=r"leak has shape \(2,\), expected \(3,\)"):
        ops.event(X, ONES, ONES, ONES[:2], backend=backend)
    with pytest.raises(ValueError, match=r"teacher has shape"):
        ops.divergence(X, X[:, :1], backend=backend)
    with pytest.raises(ValueError, match="scalar"):
        ops.tally(torch.tensor(1.0), 3, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_and_flat_tensors_are_taken(backend):
    assert ops.linear(torch.zeros(2, 0), torch.zeros(4, 0), backend=backend).tolist() == [[0.0] * 4] * 2
    assert ops.linear(torch.zeros(0, 3), torch.zeros(4, 3), backend=backend).shape == (0, 4)
    assert ops.tally(torch.tensor([0.0, 3.0, -1.0]), 3, backend=backend).tolist() == [2, 1]


def two_devices():
    there = {"device": "meta"}
    ones = torch.ones(3, **there)
    return {
        "wkv": lambda how: ops.wkv(ONES, ONES, X, X, torch.ones(1, 3, 3, **there), **how),
        "gated_wkv": lambda how: ops.gated_wkv(ONES, ONES, X, X, torch.ones(1, 2, 3, **there), **how),
        "lif": lambda how: ops.lif(X, torch.ones(1, 3, **there), **how),
        "lif_add": lambda how: ops.lif_add(X, torch.ones(1, 2, 3, **there), **how),
        "event threshold": lambda how: ops.event(X, ones, ONES, **how),
        "event leak": lambda how: ops.event(X, ONES, ONES, ones, **how),
        "shift_mix": lambda how: ops.shift_mix(X, X[:, 0], [ONES, ones], **how),
        "gate": lambda how: ops.gate(X, torch.ones(1, 2, 3, **there), **how),
        "divergence": lambda how: ops.divergence(X, torch.ones(1, 2, 3, **there), **how),
        "linear": lambda how: ops.linear(X, torch.ones(4, 3, **there), **how),
    }


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("operator", two_devices())
def test_tensors_on_two_devices_are_one_line(operator, backend):
    with pytest.raises(UserError, match=r"tensors are on (cpu|meta) and on (cpu|meta); move") as caught:
        two_devices()[operator]({"backend": backend})
    assert "\n" not in str(caught.value)


def every_operator(x):
    """Each operator on tensors of the type and the device of x [1, 2, 3]."""
    ones, row = x.new_ones(3), x[:, 0]
    return {
        "wkv": lambda how: ops.wkv(ones, ones, x, x, **how),
        "gated_wkv": lambda how: ops.gated_wkv(ones, ones, x, x, x, **how),
        "lif": lambda how: ops.lif(x, **how),
        "lif_add": lambda how: ops.lif_add(x, x, **how),
        "event": lambda how: ops.event(x, ones, ones, ones, **how),
        "memoryless event": lambda how: ops.event(x, ones, ones, **how),
        "tally": lambda how: ops.tally(x, 3, **how),
        "shift_mix": lambda how: ops.shift_mix(x, row, [ones], **how),
        "relu_squared": lambda how: ops.relu_squared(x, **how),
        "gate": lambda how: ops.gate(x, x, **how),
        "dropout": lambda how: ops.dropout(x, 0.5, **how),
        "cross_entropy": lambda how: ops.cross_entropy(x, torch.zeros(1, 2, dtype=torch.int64), **how),
        "divergence": lambda how: ops.divergence(x, x, **how),
        "linear": lambda how: ops.linear(x, x[0], **how),
    }


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
@pytest.mark.parametrize("operator", every_operator(X))
def test_only_floating_point_tensors_are_taken(operator, dtype, backend):
    with pytest.raises(ValueError, match=rf"floating-point tensors, and one is {dtype}"):
        every_operator(X.to(dtype))[operator]({"backend": backend})


# The backend: an explicit choice is used or refused


@without_triton
@pytest.mark.parametrize("operator", every_operator(X))
def test_triton_on_tensors_of_the_cpu_is_refused(operator):
    with pytest.raises(UserError, match="the Triton operators cannot be used: ") as caught:
        every_operator(X)[operator]({"backend": "triton"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("operator", every_operator(X))
def test_native_on_float64_is_refused(operator):
    with pytest.raises(UserError, match="the native operators cannot be used: "):
        every_operator(X.double())[operator]({"backend": "native"})


@pytest.mark.parametrize("operator", every_operator(X))
def test_unknown_backends_are_refused(operator):
    with pytest.raises(UsageError, match="'numpy' is not one of auto, reference, native, triton"):
        every_operator(X)[operator]({"backend": "numpy"})


@needs_native
@pytest.mark.parametrize("dtype", [HALF, torch.float16])
def test_lif_add_stays_native_whatever_the_residual(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, residual = torch.randn(2, 40, 67, generator=generator) * 2, torch.randn(2, 40, 67, generator=generator).to(dtype)
    leaves = [x.requires_grad_(), residual.requires_grad_()]
    results = []
    for backend in ("reference", "native"):
        if backend == "native":
            for name in ("lif", "lif_add"):
                monkeypatch.setattr(reference, name, None)
        y, membrane = ops.lif_add(*leaves, backend=backend)
        assert y.dtype == dtype
        results.append([y.detach(), membrane.detach(), *torch.autograd.grad([y.float().sum(), membrane.sum()], leaves)])
    for a, e in zip(*results, strict=True):
        assert a.dtype == e.dtype and torch.allclose(a, e, rtol=1e-5, atol=1e-6)


def test_what_a_backend_is_called_is_what_runs(monkeypatch):
    cpu = torch.device("cpu")
    assert ops.resolve("reference", cpu) == "reference"
    assert ops.resolve("auto", torch.device("meta")) == "reference"
    with pytest.raises(UsageError, match="'numpy'"):
        ops.resolve("numpy", cpu)
    if native.MISSING is None:
        assert ops.resolve("auto", cpu) == ops.resolve("native", cpu) == "native"
        assert dispatch.choose("auto", X) is native
    monkeypatch.setattr(native, "MISSING", "no compiler")
    assert ops.resolve("auto", cpu) == "reference"
    with pytest.raises(UserError, match="no compiler"):
        ops.resolve("native", cpu)


# Settings


@pytest.mark.parametrize("backend", BACKENDS)
def test_settings_that_mean_nothing_are_refused(backend):
    for tau in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"tau=\S+ must be above zero"):
            ops.lif(X, tau=tau, backend=backend)
        with pytest.raises(ValueError, match=r"tau=\S+ must be above zero"):
            ops.lif_add(X, X, tau=tau, backend=backend)
    for levels in (0, -3, 2**23 + 1):
        with pytest.raises(ValueError, match=rf"levels={levels} must be 1 to 8388608"):
            ops.event(X, ONES, ONES, levels=levels, backend=backend)
        with pytest.raises(ValueError, match=rf"levels={levels} must be 1 to 8388608"):
            ops.tally(X, levels, backend=backend)
    with pytest.raises(ValueError, match="smallest=4 must be 1 to 3"):
        ops.event(X, ONES, ONES, levels=3, smallest=4, backend=backend)
    for window in (-0.1, math.nan):
        with pytest.raises(ValueError, match="window=.* must be at least 0"):
            ops.event(X, ONES, ONES, window=window, backend=backend)
    for p in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"p=\S+ must be in \[0, 1\)"):
            ops.dropout(X, p, backend=backend)
    for function in (ops.relu_squared, lambda x, **how: ops.gate(x, x, **how)):
        with pytest.raises(ValueError, match=r"dtype=torch\.int64 is not a floating-point type"):
            function(X, dtype=torch.int64, backend=backend)

"""The operators wkv, lif and spike: native against the specification, the specification against hand-made numbers."""

import math
import os
import subprocess
import sys
import threading

import pytest
import torch
from op_checks import (
    LENGTHS_AND_WIDTHS,
    assert_close,
    assert_same_bits,
    generator,
    needs_native,
    on_every_instruction_set,
    run,
    threads,
)

from spikegpt import ops
from spikegpt.errors import UserError
from spikegpt.ops import dispatch, native
from spikegpt.ops.native.lif import _lif_op
from spikegpt.ops.native.wkv import _wkv_op

BACKENDS = ["reference", pytest.param("native", marks=needs_native)]


def wkv_inputs(time, channels, batch=2, scale=1.0, seed=0):
    g = generator(seed)
    decay = -torch.rand(channels, generator=g) * 2 - 1e-3
    first = torch.randn(channels, generator=g)
    k, v = (torch.randn(batch, time, channels, generator=g) * s for s in (scale, 1.0))
    seen = torch.randn(batch, channels, generator=g)
    state = torch.stack([seen, torch.rand(batch, channels, generator=g) + 0.5, seen * scale], 1)
    return [decay, first, k, v, state]


def wkv_cotangents(k):
    g = generator(1)
    return [torch.randn(k.shape, generator=g), torch.randn(k.shape[0], 3, k.shape[2], generator=g)]


def check_wkv(inputs, tolerance):
    cotangents = wkv_cotangents(inputs[2])
    expected = run(lambda *x: ops.wkv(*x, backend="reference"), inputs, cotangents, torch.float64)
    actual = run(lambda *x: ops.wkv(*x, backend="native"), inputs, cotangents, torch.float32)
    for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        assert_close(a, e, tolerance)


# wkv


def test_wkv_reference_is_the_written_sum():
    decay, first, k, v, _ = (x.double() for x in wkv_inputs(9, 3))
    y, _ = ops.wkv(decay, first, k, v)
    for t in range(9):
        ages = torch.arange(t - 1, -1, -1, dtype=torch.float64)
        weights = torch.cat([torch.exp(ages[:, None] * decay + k[0, :t]), torch.exp(first + k[0, t])[None]])
        assert_close(y[0, t], (weights * v[0, : t + 1]).sum(0) / weights.sum(0), 1e-12)


def test_wkv_reference_passes_gradcheck():
    inputs = [x.double().requires_grad_() for x in wkv_inputs(5, 2)]
    assert torch.autograd.gradcheck(lambda *x: ops.wkv(*x, backend="reference"), inputs)


@needs_native
@pytest.mark.parametrize(("time", "channels"), LENGTHS_AND_WIDTHS)
def test_wkv_native_against_double(time, channels):
    check_wkv(wkv_inputs(time, channels), 1e-5)


@needs_native
@pytest.mark.parametrize("keys", ["alternating", "rising", "falling", "random"])
def test_wkv_extreme_keys(keys):
    inputs = wkv_inputs(63, 17)
    shape = inputs[2].shape
    inputs[2] = {
        "alternating": torch.where(torch.arange(63) % 2 == 0, 80.0, -80.0)[None, :, None].expand(shape),
        "rising": torch.linspace(-80, 80, 63)[None, :, None].expand(shape),
        "falling": torch.linspace(80, -80, 63)[None, :, None].expand(shape),
        "random": torch.rand(shape, generator=generator(2)) * 160 - 80,
    }[keys].clone()
    check_wkv(inputs, 2e-4)  # a float32 near 80 is itself known to 4e-6, and so is the logarithm of each weight


@needs_native
@pytest.mark.parametrize(("decay", "first"), [(-150.0, 0.0), (-1e-6, 60.0), (-150.0, -100.0), (-1.0, 100.0)])
def test_wkv_extreme_decay_and_bonus(decay, first):
    inputs = wkv_inputs(40, 3)
    inputs[0], inputs[1] = torch.full((3,), decay), torch.full((3,), first)
    check_wkv(inputs, 1e-4)


@needs_native
def test_wkv_from_nothing():
    inputs = wkv_inputs(63, 17)[:4]
    cotangents = wkv_cotangents(inputs[2])
    expected = run(lambda *x: ops.wkv(*x, backend="reference"), inputs, cotangents, torch.float64)
    actual = run(lambda *x: ops.wkv(*x, backend="native"), inputs, cotangents, torch.float32)
    for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        assert_close(a, e, 1e-5)


def wkv_in_parts(cuts, decay, first, k, v, state, backend):
    outputs = []
    for k_part, v_part in zip(k.tensor_split(cuts, 1), v.tensor_split(cuts, 1), strict=True):
        y, state = ops.wkv(decay, first, k_part, v_part, state, backend=backend)
        outputs.append(y)
    return torch.cat(outputs, 1), state


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cuts", [[37], [1, 32, 33], list(range(1, 100))])
def test_wkv_in_parts_with_the_state_carried(backend, cuts):
    inputs = wkv_inputs(100, 5)
    cotangents = wkv_cotangents(inputs[2])
    whole = run(lambda *x: ops.wkv(*x, backend=backend), inputs, cotangents, torch.float32)
    parts = run(lambda *x: wkv_in_parts(cuts, *x, backend), inputs, cotangents, torch.float32)
    assert_same_bits(parts[0], whole[0])
    for a, e in zip(parts[1], whole[1], strict=True):
        assert_close(a, e, 1e-5)


# lif and spike


@pytest.mark.parametrize("backend", BACKENDS)
def test_lif_membrane_by_hand(backend):
    # H with tau 2: 0.5, 0.75, 0.625, 1.3125 (fires), 1.0 (fires: it is not below), -0.5, -0.25
    x = torch.tensor([1.0, 1.0, 0.5, 2.0, 2.0, -1.0, 0.0])[None, :, None]
    membranes = [0.5, 0.75, 0.625, 0.0, 0.0, -0.5, -0.25]
    spikes, _ = ops.lif(x, backend=backend)
    assert spikes.flatten().tolist() == [0, 0, 0, 1, 1, 0, 0]
    for t, membrane in enumerate(membranes):
        assert ops.lif(x[:, : t + 1], backend=backend)[1].item() == membrane


@pytest.mark.parametrize("backend", BACKENDS)
def test_lif_other_constants_by_hand(backend):
    # tau 4, threshold 0.5, from 0.25: H = 0.25 + (1.25 - 0.25)/4 = 0.5 (fires); 0 + 1/4 = 0.25; 0.25 + 0.75/4 = 0.4375
    x = torch.tensor([1.25, 1.0, 1.0])[None, :, None]
    spikes, membrane = ops.lif(x, torch.tensor([[0.25]]), tau=4, threshold=0.5, backend=backend)
    assert spikes.flatten().tolist() == [1, 0, 0]
    assert membrane.item() == 0.4375


@pytest.mark.parametrize("backend", BACKENDS)
def test_lif_gradient_by_hand(backend):
    # One token fires at H = 1.5, the next stays at H = 0.5; s(z) = 1 / (1 + (pi z)^2) is the surrogate for alpha 2.
    # dV1/dx1 = (dV1/dH1) / 2 with V1 = (1 - S1) H1: dV1/dH1 = -1.5 s(0.5); H2 = V1/2 + x2/2; V2 = (1 - S2) H2.
    def s(z):
        return 1 / (1 + (math.pi * z) ** 2)

    x = torch.tensor([3.0, 1.0])[None, :, None].requires_grad_()
    spikes, membrane = ops.lif(x, backend=backend)
    assert spikes.flatten().tolist() == [1, 0]
    through_spikes = torch.autograd.grad(spikes.sum(), x, retain_graph=True)[0].flatten().tolist()
    through_membrane = torch.autograd.grad(membrane.sum(), x)[0].flatten().tolist()
    dv1 = -1.5 * s(0.5)
    dv2 = 1 - 0.5 * s(-0.5)
    assert through_spikes == pytest.approx([(s(0.5) + s(-0.5) * dv1 / 2) / 2, s(-0.5) / 2], rel=1e-6)
    assert through_membrane == pytest.approx([dv2 * dv1 / 4, dv2 / 2], rel=1e-6)


@pytest.mark.parametrize("alpha", [2.0, 3.5])
def test_spike_is_the_step_and_its_surrogate_the_formula(alpha):
    z = torch.tensor(
        [-1e30, -2.0, -0.3, -1e-45, -0.0, 0.0, 1e-45, 0.3, 2.0, 1e15], dtype=torch.float64, requires_grad=True
    )
    spikes = ops.spike(z, alpha)
    assert spikes.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    (slope,) = torch.autograd.grad(spikes.sum(), z)
    assert slope.tolist() == pytest.approx([alpha / 2 / (1 + (math.pi / 2 * alpha * x) ** 2) for x in z.tolist()])


def lif_inputs(time, channels):
    g = generator()
    return [torch.randn(2, time, channels, generator=g) * 1.5 + 0.5, torch.rand(2, channels, generator=g)]


def lif_cotangents(x):
    g = generator(1)
    return [torch.randn(x.shape, generator=g), torch.randn(x.shape[0], x.shape[2], generator=g)]


@needs_native
@pytest.mark.parametrize("tau", [2.0, 3.3])
@pytest.mark.parametrize(("time", "channels"), LENGTHS_AND_WIDTHS)
def test_lif_native_against_double(time, channels, tau):
    inputs = lif_inputs(time, channels)
    cotangents = lif_cotangents(inputs[0])
    settings = {"tau": tau, "threshold": 1.1, "alpha": 2.5}
    expected = run(lambda *x: ops.lif(*x, **settings, backend="reference"), inputs, cotangents, torch.float64)
    actual = run(lambda *x: ops.lif(*x, **settings, backend="native"), inputs, cotangents, torch.float32)
    flipped = first_flips(actual[0][0], expected[0][0], inputs, settings)
    assert flipped.sum() <= 2
    kept = ~flipped
    for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        assert_close(a.movedim(-1, 1)[kept], e.movedim(-1, 1)[kept], 1e-5)


def first_flips(spikes, expected, inputs, settings):
    """[B, C]: trains of spikes that differ. The first difference must lie within rounding of the threshold."""
    membrane = inputs[1].double()
    flipped = torch.zeros_like(membrane, dtype=torch.bool)
    for t in range(spikes.shape[1]):
        charged = membrane + (inputs[0][:, t].double() - membrane) / settings["tau"]
        new = (spikes[:, t] != expected[:, t]) & ~flipped
        assert ((charged - settings["threshold"]).abs()[new] < 1e-6).all()
        flipped |= new
        membrane = charged * (1 - expected[:, t])
    return flipped


@needs_native
def test_lif_native_rounds_as_the_reference_does():
    inputs = lif_inputs(200, 67)
    for tau in (2.0, 3.3):
        assert_same_bits(ops.lif(*inputs, tau=tau, backend="native"), ops.lif(*inputs, tau=tau, backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cuts", [[37], [1, 32, 33], list(range(1, 100))])
def test_lif_in_parts_with_the_membrane_carried(backend, cuts):
    def in_parts(x, membrane):
        outputs = []
        for part in x.tensor_split(cuts, 1):
            spikes, membrane = ops.lif(part, membrane, backend=backend)
            outputs.append(spikes)
        return torch.cat(outputs, 1), membrane

    inputs = lif_inputs(100, 5)
    cotangents = lif_cotangents(inputs[0])
    whole = run(lambda *x: ops.lif(*x, backend=backend), inputs, cotangents, torch.float32)
    parts = run(in_parts, inputs, cotangents, torch.float32)
    assert_same_bits(parts[0] + parts[1], whole[0] + whole[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_lif_against_spikingjelly(backend):
    # `pip install spikingjelly` asks for torchvision, which brings CUDA packages; with --no-deps it does not.
    reason = "needs spikingjelly (pip install --no-deps spikingjelly) and what its neurons import"
    neurons = pytest.importorskip("spikingjelly.activation_based.neuron", reason=reason, exc_type=ImportError)
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate", reason=reason, exc_type=ImportError)
    node = neurons.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(alpha=2.0), step_mode="m")
    x, _ = lif_inputs(50, 7)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    spikes, _ = ops.lif(ours, backend=backend)
    expected = node(theirs.transpose(0, 1)).transpose(0, 1)
    assert torch.equal(spikes, expected)
    cotangent = lif_cotangents(x)[0]
    assert_close(*(torch.autograd.grad(s, i, cotangent)[0] for s, i in ((spikes, ours), (expected, theirs))), 1e-6)


# Both: same bits, foreign types, the compiler, the door


def all_bits():
    k = wkv_inputs(100, 130, seed=3)
    x = lif_inputs(100, 130)
    outputs, gradients = run(ops.wkv, k, wkv_cotangents(k[2]), torch.float32)
    spikes, spike_gradients = run(ops.lif, x, lif_cotangents(x[0]), torch.float32)
    return outputs + gradients + spikes + spike_gradients


@needs_native
def test_same_bits_from_run_to_run_on_any_threads_and_instruction_set():
    expected = all_bits()
    for number in (1, 2, 3, 8):
        with threads(number):
            for _ in range(3):
                assert_same_bits(all_bits(), expected)
    for result in on_every_instruction_set(all_bits):
        assert_same_bits(result, expected)


@needs_native
def test_concurrent_callers_do_not_disturb_each_other():
    expected, failures = all_bits(), []

    def call():
        for _ in range(5):
            try:
                assert_same_bits(all_bits(), expected)
            except AssertionError as failure:
                failures.append(failure)

    with threads(2):
        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert not failures


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_a_pool_of_its_own():
    script = """
import os, torch
from spikegpt import ops
torch.set_num_threads(2)
x = torch.randn(4, 200, 256)
expected = ops.lif(x, backend="native")[0]
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(ops.lif(x, backend="native")[0], expected) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_read_only_and_may_be_strided(backend):
    decay, first, k, v, state = wkv_inputs(20, 6)
    before = [x.clone() for x in (decay, first, k, v, state)]
    strided = k.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    assert_same_bits(ops.wkv(decay, first, strided, v, state, backend=backend), ops.wkv(*before, backend=backend))
    ops.lif(strided, state[:, 0], backend=backend)
    assert_same_bits([decay, first, strided.contiguous(), v, state], before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_inputs_under_autocast(backend):
    inputs = wkv_inputs(20, 6)
    half = [x.bfloat16().requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = ops.wkv(*half, backend=backend)
        spikes, _ = ops.lif(half[2], backend=backend)
    full = ops.wkv(*(x.detach().float() for x in half), backend=backend)
    assert_same_bits([o.detach() for o in outputs], full)
    assert spikes.dtype == torch.float32
    assert all(
        g.dtype == torch.bfloat16
        for g in torch.autograd.grad([*outputs, spikes], half, [*map(torch.ones_like, [*outputs, spikes])])
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_leave_the_state_alone(backend):
    *inputs, state = wkv_inputs(0, 6)
    y, after = ops.wkv(*inputs, state.requires_grad_(), backend=backend)
    assert y.shape == (2, 0, 6)
    assert torch.equal(after, state)
    cotangent = wkv_cotangents(inputs[2])[1]
    assert_close(torch.autograd.grad(after, state, cotangent)[0], cotangent, 1e-6)
    membrane = torch.rand(2, 6)
    assert torch.equal(ops.lif(inputs[2], membrane, backend=backend)[1], membrane)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_hidden(backend):
    decay, first, k, v, _ = wkv_inputs(5, 3)
    k[0, 2, 1] = math.nan
    y, state = ops.wkv(decay, first, k, v, backend=backend)
    assert y[0, 2:, 1].isnan().all() and state[0, :2, 1].isnan().all()
    assert y[1].isfinite().all()
    assert ops.lif(k, backend=backend)[1][0, 1].isnan()


@needs_native
@pytest.mark.filterwarnings("ignore")
def test_compiles_without_a_graph_break():
    def function(decay, first, k, v, state):
        y, state = ops.wkv(decay, first, k, v, state)
        spikes, membrane = ops.lif(y * 3)
        return spikes, membrane, state

    inputs = wkv_inputs(33, 17)
    cotangents = [*lif_cotangents(inputs[2]), wkv_cotangents(inputs[2])[1]]
    expected = run(function, inputs, cotangents, torch.float32)
    actual = run(torch.compile(function, fullgraph=True, backend="aot_eager"), inputs, cotangents, torch.float32)
    for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        assert_close(a, e, 1e-6)


@needs_native
@pytest.mark.filterwarnings("ignore")
def test_custom_operators_keep_torch_rules():
    inputs = [x.requires_grad_() for x in wkv_inputs(40, 3)]
    torch.library.opcheck(_wkv_op, inputs)
    x, membrane = (x.requires_grad_() for x in lif_inputs(40, 3))
    torch.library.opcheck(_lif_op, (x, membrane, 2.0, 1.0, 2.0))


def test_a_choice_is_kept_or_refused():
    x = torch.zeros(1, 2, 3)
    with pytest.raises(UserError, match="'numpy' is not one of auto, reference, native"):
        ops.lif(x, backend="numpy")
    with pytest.raises(UserError, match=r"float32.*float64" if native.MISSING is None else "cannot be used"):
        ops.lif(x.double(), backend="native")
    assert ops.lif(x.double())[0].dtype == torch.float64


def test_wrong_shapes_are_named():
    decay, first, k, v, state = wkv_inputs(4, 3)
    with pytest.raises(ValueError, match=r"v has shape \(2, 3, 3\), expected \(2, 4, 3\)"):
        ops.wkv(decay, first, k, v[:, 1:])
    with pytest.raises(ValueError, match="decay has shape"):
        ops.wkv(decay[:1], first, k, v)
    with pytest.raises(ValueError, match="state has shape"):
        ops.wkv(decay, first, k, v, state[:, :2])
    with pytest.raises(ValueError, match="membrane has shape"):
        ops.lif(k, k)
    with pytest.raises(ValueError, match=r"expected \[B, T, C\]"):
        ops.lif(decay)


def test_without_the_library_auto_warns_once(monkeypatch):
    monkeypatch.setattr(native, "MISSING", "no compiler")
    monkeypatch.setattr(dispatch, "_warned", False)
    x = torch.full((1, 2, 3), 3.0)
    with pytest.warns(UserWarning, match="no compiler") as caught:
        spikes, _ = ops.lif(x)
        ops.lif(x)
    assert len(caught) == 1
    assert spikes.sum() == 6
    assert ops.available()["reference"] is True
    assert ops.available()["native"] == "no compiler"
    with pytest.raises(UserError, match="no compiler"):
        ops.lif(x, backend="native")


def test_imports_without_the_library():
    script = """
import sys
sys.modules["spikegpt.ops._native"] = None
from spikegpt import ops
assert ops.available()["reference"] is True
assert "cannot be loaded" in ops.available()["native"]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

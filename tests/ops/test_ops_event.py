"""The operator event: graded spikes above a threshold."""

import itertools
import math

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
from spikegpt.ops.native.event import _event_op, _point_op

BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
SETTINGS = [
    {"levels": levels, "signed": signed, "reset": reset, "window": window}
    for levels, signed, reset, window in itertools.product((1, 15), (True, False), ("hard", "soft"), (0.0, 0.5))
] + [
    {"levels": 15, "smallest": 3, "signed": signed, "reset": reset, "window": window}
    for signed, reset, window in ((True, "hard", 0.0), (True, "soft", 0.5), (False, "hard", 0.5))
]


def channel(*values):
    return torch.tensor(values)[None, :, None]


def one(value):
    return torch.tensor([value])


def event_inputs(time, channels):
    """x, leak, membrane, and the threshold and unit beside them."""
    g = generator()
    x = torch.randn(2, time, channels, generator=g) * 2
    leak, membrane = torch.rand(channels, generator=g) * 0.9, torch.randn(2, channels, generator=g)
    threshold = torch.rand(channels, generator=g) + 0.3
    return [x, leak, membrane], threshold, threshold / 4


def cotangents_for(x):
    g = generator(1)
    return [torch.randn(x.shape, generator=g), torch.randn(x.shape[0], x.shape[2], generator=g)]


def both(inputs, threshold, unit, dtype, backend, **settings):
    """Outputs and gradients of the operator with a membrane."""

    def function(x, leak, membrane):
        return ops.event(x, threshold.to(dtype), unit.to(dtype), leak, membrane, **settings, backend=backend)

    return run(function, inputs, cotangents_for(inputs[0]), dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_memoryless_events_by_hand(backend):
    # threshold 1, unit 0.25: the overshoot is rounded up to a multiple of the unit
    x = channel(0.0, 0.99, 1.0, 1.01, 1.25, 1.26, -1.6, 9.0, -9.0)
    settings = {"threshold": one(1.0), "unit": one(0.25), "backend": backend}
    assert ops.event(x, **settings)[0].flatten().tolist() == [0, 0, 0, 1, 1, 2, -3, 15, -15]
    assert ops.event(x, **settings, levels=1)[0].flatten().tolist() == [0, 0, 0, 1, 1, 1, -1, 1, -1]
    assert ops.event(x, **settings, signed=False)[0].flatten().tolist() == [0, 0, 0, 1, 1, 2, 0, 15, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_membrane_by_hand(backend):
    # leak 0.5, threshold 1, unit 0.5. Hard: H = 0.75; 0.375 + 1.125 = 1.5, n = 1, M = 0; -2.25, n = -3, M = 0; 0.5
    x = channel(0.75, 1.125, -2.25, 0.5)
    settings = {"threshold": one(1.0), "unit": one(0.5), "leak": one(0.5), "backend": backend}
    events, membrane = ops.event(x, **settings)
    assert events.flatten().tolist() == [0, 1, -3, 0]
    assert membrane.item() == 0.5
    # Soft: 0.75; 1.5, n = 1, M = 1.0; 0.5 - 2.25 = -1.75, n = -2, M = -0.75; -0.375 + 0.5 = 0.125
    events, membrane = ops.event(x, **settings, reset="soft")
    assert events.flatten().tolist() == [0, 1, -2, 0]
    assert membrane.item() == 0.125


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradient_is_the_soft_thresholds_inside_its_window(backend, sign):
    # threshold 1, unit 0.25, levels 4: the ramp is (1, 2], and with window 0.5 it is (0.5, 2.5]
    sizes = [0.4, 0.6, 1.0, 1.1, 1.9, 2.0, 2.1, 2.5, 2.6]
    for window, passes in ((0.0, [0, 0, 0, 1, 1, 1, 0, 0, 0]), (0.5, [0, 1, 1, 1, 1, 1, 1, 1, 0])):
        x = (channel(*sizes) * sign).requires_grad_()
        events, _ = ops.event(x, one(1.0), one(0.25), levels=4, window=window, backend=backend)
        (slope,) = torch.autograd.grad(events.sum(), x)
        assert slope.flatten().tolist() == [4.0 * p for p in passes]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_jump_by_hand(backend):
    # threshold 1, unit 0.5, smallest 2: nothing is sent up to 1.5, the gradient begins where sending does
    settings = {"threshold": one(1.0), "unit": one(0.5), "levels": 4, "smallest": 2, "backend": backend}
    x = channel(0.9, 1.25, 1.5, 1.75, -1.25, -2.25, 9.0).requires_grad_()
    events, _ = ops.event(x, **settings)
    assert events.flatten().tolist() == [0, 0, 0, 2, 0, -3, 4]
    (slope,) = torch.autograd.grad(events.sum(), x)
    assert slope.flatten().tolist() == [0, 0, 0, 2.0, 0, 2.0, 0]
    assert ops.event(x, **{**settings, "smallest": 1})[0].flatten().tolist() == [0, 1, 1, 2, -1, -3, 4]
    assert ops.event(x, **settings, signed=False)[0].flatten().tolist() == [0, 0, 0, 2, 0, 0, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_sent_stays_in_the_membrane(backend):
    # leak 0.5, threshold 1, unit 0.5, smallest 2. H = 1.25: silent, though above the threshold; 0.625 + 1.25 = 1.875: n = 2
    x = channel(1.25, 1.25, 0.25).requires_grad_()
    settings = {"threshold": one(1.0), "unit": one(0.5), "leak": one(0.5), "smallest": 2, "backend": backend}
    events, membrane = ops.event(x, **settings)
    assert events.flatten().tolist() == [0, 2, 0]
    assert membrane.item() == 0.25
    assert torch.autograd.grad(events.sum(), x, retain_graph=True)[0].flatten().tolist() == [1.0, 2.0, 0.0]
    assert torch.autograd.grad(membrane.sum(), x)[0].flatten().tolist() == [0.0, 0.0, 1.0]  # cut by the reset
    _, membrane = ops.event(x, **settings, reset="soft")
    assert membrane.item() == 0.5 * (1.875 - 2 * 0.5) + 0.25


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_through_the_reset_by_hand(backend):
    # leak 0.5, threshold 1, unit 0.5; x = 0.5 (silent), 1.5 (H = 1.75: n = 2), 0.5
    for reset, through in (("hard", 0.0), ("soft", 1.0 - 0.5 * 2.0)):
        x = channel(0.5, 1.5, 0.5).requires_grad_()
        leak = one(0.5).requires_grad_()
        events, membrane = ops.event(x, one(1.0), one(0.5), leak, reset=reset, backend=backend)
        assert events.flatten().tolist() == [0, 2, 0]
        grad_x, grad_leak = torch.autograd.grad(events.sum(), [x, leak], retain_graph=True)
        assert grad_x.flatten().tolist() == [0.5 * 2.0, 2.0, 0.0]
        assert grad_leak.item() == 2.0 * 0.5  # dn/dH times the membrane it found
        (grad_x,) = torch.autograd.grad(membrane.sum(), [x])
        assert grad_x.flatten().tolist() == [0.25 * through, 0.5 * through, 1.0]
    # A saturated event subtracts a constant: the soft reset passes the whole gradient on.
    x = channel(9.0).requires_grad_()
    _, membrane = ops.event(x, one(1.0), one(0.5), one(0.5), levels=1, reset="soft", backend=backend)
    assert torch.autograd.grad(membrane.sum(), x)[0].item() == 1.0


@needs_native
@pytest.mark.parametrize(("time", "channels"), LENGTHS_AND_WIDTHS)
def test_native_against_double(time, channels):
    inputs, threshold, unit = event_inputs(time, channels)
    for settings in SETTINGS if time < 1000 else SETTINGS[:1]:
        actual = both(inputs, threshold, unit, torch.float32, "native", **settings)
        expected = both(inputs, threshold, unit, torch.float64, "reference", **settings)
        flipped = flips(actual[0][0], expected[0][0], inputs, threshold, unit, settings)
        assert flipped.sum() <= 2
        kept = ~flipped
        assert_close(actual[0][1][kept], expected[0][1][kept], 1e-5)
        (x, _, membrane), (x64, _, membrane64) = actual[1], expected[1]
        assert_close(x.movedim(2, 1)[kept], x64.movedim(2, 1)[kept], 1e-5)
        assert_close(membrane[kept], membrane64[kept], 1e-5)
        whole = kept.all(0)
        assert_close(actual[1][1][whole], expected[1][1][whole], 2e-5)


def flips(events, expected, inputs, threshold, unit, settings):
    """[B, C]: trains of events that differ. The first difference must be one step, within rounding of it."""
    x, leak, membrane = (i.double() for i in inputs)
    flipped = torch.zeros_like(membrane, dtype=torch.bool)
    for t in range(x.shape[1]):
        charged = leak * membrane + x[:, t]
        steps = (charged.abs() - threshold.double()) / unit.double()
        new = (events[:, t] != expected[:, t]) & ~flipped
        step = (events[:, t] - expected[:, t]).abs()[new]
        assert ((step == 1) | (step == settings.get("smallest", 1))).all()
        assert ((steps - steps.round()).abs()[new] < 1e-4).all()
        flipped |= new
        n = expected[:, t]
        membrane = charged * (n == 0) if settings["reset"] == "hard" else charged - n * unit.double()
    return flipped


@needs_native
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_native_rounds_as_the_reference_does(settings):
    (x, leak, membrane), threshold, unit = event_inputs(100, 67)
    for keep in (leak, None):
        expected = ops.event(x, threshold, unit, keep, membrane, **settings, backend="reference")
        actual = ops.event(x, threshold, unit, keep, membrane, **settings, backend="native")
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[1], expected[1])
    grads = []
    for backend in ("native", "reference"):
        leaf = x.clone().requires_grad_()
        events, _ = ops.event(leaf, threshold, unit, **settings, backend=backend)
        grads += torch.autograd.grad(events, leaf, cotangents_for(x)[0])
    assert_close(*grads, 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_memoryless_is_a_leak_of_zero(backend):
    (x, leak, membrane), threshold, unit = event_inputs(20, 5)
    events, after = ops.event(x, threshold, unit, None, membrane, backend=backend)
    assert torch.equal(events, ops.event(x, threshold, unit, torch.zeros_like(leak), membrane, backend=backend)[0])
    assert torch.equal(after, membrane)
    assert torch.equal(ops.event(x, threshold, unit, backend=backend)[1], torch.zeros(2, 5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cuts", [[37], [1, 32, 33], list(range(1, 70))])
def test_in_parts_with_the_membrane_carried(backend, cuts):
    inputs, threshold, unit = event_inputs(70, 5)

    def in_parts(x, leak, membrane):
        outputs = []
        for part in x.tensor_split(cuts, 1):
            events, membrane = ops.event(part, threshold, unit, leak, membrane, reset="soft", backend=backend)
            outputs.append(events)
        return torch.cat(outputs, 1), membrane

    whole = both(inputs, threshold, unit, torch.float32, backend, reset="soft")
    parts = run(in_parts, inputs, cotangents_for(inputs[0]), torch.float32)
    assert_same_bits(parts[0], whole[0])
    for a, e in zip(parts[1], whole[1], strict=True):
        assert_close(a, e, 1e-5)


@needs_native
def test_same_bits_from_run_to_run_on_any_threads_and_instruction_set():
    inputs, threshold, unit = event_inputs(100, 130)

    def bits():
        outputs, gradients = both(inputs, threshold, unit, torch.float32, "native")
        leaf = inputs[0].clone().requires_grad_()
        events, _ = ops.event(leaf, threshold, unit)
        return [*outputs, *gradients, events.detach(), *torch.autograd.grad(events, leaf, cotangents_for(leaf)[0])]

    expected = bits()
    for number in (1, 2, 8):
        with threads(number):
            assert_same_bits(bits(), expected)
    for result in on_every_instruction_set(bits):
        assert_same_bits(result, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_hidden(backend):
    x = channel(0.5, math.nan, 2.0)
    assert ops.event(x, one(1.0), one(0.25), backend=backend)[0].isnan().flatten().tolist() == [False, True, False]
    assert ops.event(x, one(1.0), one(0.25), one(0.5), backend=backend)[0][0, 1].isnan()


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_inputs(backend):
    x = channel(0.5, 1.5, -1.75).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        events, membrane = ops.event(x, one(1.0), one(0.25), one(0.5), backend=backend)
    assert events.dtype == membrane.dtype == torch.float32
    assert torch.autograd.grad(events.sum(), x)[0].dtype == torch.bfloat16


@needs_native
@pytest.mark.filterwarnings("ignore")
def test_compiles_without_a_graph_break():
    inputs, threshold, unit = event_inputs(33, 17)

    def function(x, leak, membrane):
        events, after = ops.event(x, threshold, unit, leak, membrane)
        point, _ = ops.event(events * 0.3, threshold, unit)
        return point, after

    cotangents = cotangents_for(inputs[0])
    expected = run(function, inputs, cotangents, torch.float32)
    actual = run(torch.compile(function, fullgraph=True, backend="aot_eager"), inputs, cotangents, torch.float32)
    for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        assert_close(a, e, 1e-6)


@needs_native
@pytest.mark.filterwarnings("ignore")
def test_custom_operators_keep_torch_rules():
    (x, leak, membrane), threshold, unit = event_inputs(40, 3)
    x, leak, membrane = (i.requires_grad_() for i in (x, leak, membrane))
    torch.library.opcheck(_event_op, (x, threshold, unit, leak, membrane, 15, 2, True, True, 0.0, False))
    torch.library.opcheck(_point_op, (x, threshold, unit, 15, 2, True, 0.0, False))


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_the_product_of_events_against_double(rows):
    g = generator()
    events, weight = torch.randint(-15, 16, (2, rows, 24), generator=g), torch.randn(7, 24, generator=g)
    cotangents = [torch.randn(2, rows, 7, generator=g)]

    def product(backend):
        return lambda x, w: (ops.linear(x, w, one(0.3).to(w.dtype), backend=backend),)

    expected = run(product("reference"), [events.double(), weight], cotangents, torch.float64)
    for backend in ("reference", "auto"):
        actual = run(product(backend), [events.float(), weight], cotangents, torch.float32)
        for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
            assert_close(a, e, 1e-6)
        with torch.no_grad():
            assert_close(product(backend)(events.float(), weight)[0], expected[0][0], 1e-6)
    half = ops.linear(events.bfloat16(), weight.bfloat16(), one(0.3))
    assert_close(half.float(), expected[0][0], 0.02)


@needs_native
def test_training_keeps_two_bytes_of_an_event_and_none_of_the_weights():
    x, threshold, unit = torch.randn(2, 50, 64, requires_grad=True), torch.ones(64), torch.full((64,), 0.25)
    weight = torch.randn(32, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        events, _ = ops.event(x, threshold, unit)
        ops.linear(events, weight, one(0.25))
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept if t is not weight}
    assert sum(sizes.values()) <= 2 * x.numel() + 4 * (64 + 1)


def test_bad_settings_are_named():
    x = channel(1.0)
    with pytest.raises(ValueError, match="reset='none' is not one of"):
        ops.event(x, one(1.0), one(1.0), reset="none")
    with pytest.raises(ValueError, match="threshold has shape"):
        ops.event(x, torch.ones(2), one(1.0))
    with pytest.raises(ValueError, match="leak has shape"):
        ops.event(x, one(1.0), one(1.0), torch.ones(2))

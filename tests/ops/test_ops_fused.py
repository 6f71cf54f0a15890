"""What stands around the operators along time, in one pass: native against the specification in float64."""

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
from spikegpt.ops import reference
from spikegpt.ops.native import loss, mix, pointwise

BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
HALF = torch.bfloat16
ROUNDING = 2**-8
"""Of bfloat16, relative."""


def random(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def cotangents_for(function, inputs):
    return [random(*y.shape, seed=9 + i) for i, y in enumerate(function(*inputs))]


def check(function, inputs, tolerance=1e-5):
    """Every output and gradient of the native kernels in float32 against the reference in float64."""
    cotangents = cotangents_for(lambda *x: function(*x, backend="reference"), inputs)
    expected = run(lambda *x: function(*x, backend="reference"), inputs, cotangents, torch.float64)
    actual = run(lambda *x: function(*x, backend="native"), inputs, cotangents, torch.float32)
    for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        assert_close(a, e, tolerance)


def check_half(function, inputs, half):
    """Inputs number `half` and the outputs in bfloat16: their rounding is all that may differ."""
    inputs = [x.to(HALF).float() if i in half else x for i, x in enumerate(inputs)]
    cotangents = [g.to(HALF).float() for g in cotangents_for(lambda *x: function(*x, backend="native"), inputs)]
    exact = run(lambda *x: function(*x, backend="native"), inputs, cotangents, torch.float32)
    leaves = [(x.to(HALF) if i in half else x).detach().requires_grad_() for i, x in enumerate(inputs)]
    outputs = function(*leaves, dtype=HALF, backend="native")
    assert outputs[0].dtype == HALF
    wanted = [g.to(y.dtype) for g, y in zip(cotangents, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, leaves, wanted)
    for actual, leaf in zip(gradients, leaves, strict=True):
        assert actual.dtype == leaf.dtype
    for actual, expected in zip([*outputs, *gradients], exact[0] + exact[1], strict=True):
        assert_close(actual.detach().float(), expected, ROUNDING)


def shift_mix(x, last, *mixes, **how):
    return ops.shift_mix(x, last, mixes, **how)


def shift_inputs(time, channels, count=3):
    mixes = [random(channels, seed=2 + i) * 0.6 + 0.4 for i in range(count)]
    return [random(2, time, channels), random(2, channels, seed=1), *mixes]


def gated_wkv(decay, first, k, v, state, gate, **how):
    return ops.gated_wkv(decay, first, k, v, gate, state, **how)


def gated_inputs(time, channels):
    decay = -torch.rand(channels, generator=generator(5)) - 1e-3
    k, v, gate = (random(2, time, channels, seed=seed) for seed in (1, 2, 3))
    seen = random(2, channels, seed=4)
    return [decay, random(channels), k, v, torch.stack([seen, seen.abs() + 0.5, seen], 1), gate * 3]


def relu_squared(x, **how):
    return [ops.relu_squared(x, **how)]


def gate(opening, x, **how):
    return [ops.gate(opening, x, **how)]


def cross_entropy_inputs(rows, classes, seed=0):
    logits = random(2, rows, classes, seed=seed) * 3
    return logits, torch.randint(classes, (2, rows), generator=generator(1))


@needs_native
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("time", "channels"), [*LENGTHS_AND_WIDTHS, (3, 300)])
def test_shift_mix_against_double(time, channels, count):
    check(shift_mix, shift_inputs(time, channels, count))


@pytest.mark.parametrize("backend", BACKENDS)
def test_shift_mix_by_hand(backend):
    x, last = torch.tensor([1.0, 3.0, 5.0])[None, :, None], torch.tensor([[-1.0]])
    now, half, before = ops.shift_mix(x, last, [torch.tensor([m]) for m in (1.0, 0.5, 0.0)], backend=backend)
    assert [y.flatten().tolist() for y in (now, half, before)] == [[1, 3, 5], [0, 2, 4], [-1, 1, 3]]


@needs_native
def test_shift_mix_in_parts_with_the_token_carried():
    x, last, *mixes = shift_inputs(100, 5)
    whole = ops.shift_mix(x, last, mixes, backend="native")
    parts, before = [], last
    for part in x.tensor_split([1, 37], 1):
        parts.append(ops.shift_mix(part, before, mixes, backend="native"))
        before = part[:, -1]
    assert_same_bits([torch.cat(ys, 1) for ys in zip(*parts, strict=True)], whole)


@needs_native
@pytest.mark.parametrize(("time", "channels"), [(1, 67), (63, 67), (65, 130), (200, 1)])
def test_gated_wkv_against_double(time, channels):
    check(gated_wkv, gated_inputs(time, channels))


@needs_native
def test_relu_squared_and_gate_against_double():
    for shape in [(1,), (3, 5), (2, 63, 67), (9001,)]:
        check(relu_squared, [random(*shape)], 1e-6)
        check(gate, [random(*shape) * 8, random(*shape, seed=1)], 1e-6)


@needs_native
def test_half_types_are_read_and_made():
    check_half(shift_mix, shift_inputs(65, 67), half=())
    check_half(gated_wkv, gated_inputs(65, 67), half=(2, 3, 5))
    check_half(relu_squared, [random(3, 130)], half=(0,))
    check_half(gate, [random(3, 130), random(3, 130, seed=1)], half=(0, 1))


@needs_native
@pytest.mark.parametrize("half", [False, True])
def test_lif_add_is_the_residual_and_the_spikes(half):
    x, residual, membrane = random(2, 70, 67) * 2, random(2, 70, 67, seed=1), random(2, 67, seed=2)
    x = x.to(HALF) if half else x
    leaves = [t.requires_grad_() for t in (x, residual, membrane)]
    fused = ops.lif_add(*leaves, backend="native")
    spikes, after = ops.lif(leaves[0].float(), membrane, backend="native")
    assert_same_bits(fused, (residual + spikes, after))
    cotangents = [random(2, 70, 67, seed=3), random(2, 67, seed=4)]
    gradients = torch.autograd.grad(fused, leaves, cotangents)
    expected = torch.autograd.grad([residual + spikes, after], leaves, cotangents)
    assert gradients[0].dtype == x.dtype
    for a, e in zip(gradients, expected, strict=True):
        assert torch.equal(a, e)


@needs_native
@pytest.mark.parametrize("leaky", [False, True])
def test_events_in_half_types_are_the_same_events(leaky):
    x = (random(2, 70, 67) * 2).to(HALF).requires_grad_()
    leak, membrane = (torch.full((67,), 0.4), random(2, 67)) if leaky else (None, None)
    how = {"leak": leak, "membrane": membrane, "window": 0.5, "backend": "native"}
    threshold, unit = torch.full((67,), 0.7), torch.full((67,), 0.25)
    events, after = ops.event(x, threshold, unit, dtype=HALF, **how)
    expected, after_expected = ops.event(x.float(), threshold, unit, **how)
    assert events.dtype == HALF
    assert torch.equal(events.float(), expected) and torch.equal(after, after_expected)
    cotangent = random(2, 70, 67, seed=3).to(HALF)
    (gradient,) = torch.autograd.grad(events, x, cotangent)
    assert torch.equal(gradient, torch.autograd.grad(expected, x, cotangent.float())[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_tally_counts_what_fires_and_what_is_largest(backend, dtype):
    events = torch.randint(-3, 4, (2, 9, 67), generator=generator()).to(dtype)
    for seen in (events, events[:, ::4], events[:, :8:4], events[:, :0]):
        expected = [int((seen != 0).sum()), int((seen.abs() == 3).sum())]
        assert ops.tally(seen, 3, backend=backend).tolist() == expected


@needs_native
@pytest.mark.parametrize("classes", [1, 63, 64, 300, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_cross_entropy_against_double(classes, dtype):
    logits, targets = cross_entropy_inputs(5, classes)
    logits = logits.to(dtype).requires_grad_()
    loss = ops.cross_entropy(logits, targets, 0.01, backend="native")
    exact = logits.detach().double().requires_grad_()
    expected = ops.cross_entropy(exact, targets, 0.01, backend="reference")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss * 3, logits)
    assert gradient.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else ROUNDING
    assert_close(gradient, torch.autograd.grad(expected * 3, exact)[0], tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cross_entropy_of_extreme_logits(backend):
    logits = torch.tensor([[-1e4, 1e4, 0.0], [-math.inf, 5.0, 5.0], [-1e3, -1e3, -1e3]], requires_grad=True)
    loss = ops.cross_entropy(logits, torch.tensor([1, 2, 0]), backend=backend)
    assert loss.item() == pytest.approx((0 + math.log(2) + math.log(3)) / 3, abs=1e-4)  # at 1e3
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()
    assert ops.cross_entropy(torch.full((1, 70), math.nan), torch.tensor([3]), backend=backend).isnan()


@needs_native
@pytest.mark.parametrize("classes", [1, 63, 64, 300, 5000])
@pytest.mark.parametrize(("dtype", "teachers"), [(torch.float32, torch.float32), (HALF, torch.float32), (HALF, HALF)])
def test_divergence_against_double(classes, dtype, teachers):
    logits = cross_entropy_inputs(5, classes)[0].to(dtype).requires_grad_()
    teacher = cross_entropy_inputs(5, classes, seed=7)[0].to(teachers).requires_grad_()
    got = ops.divergence(logits, teacher, backend="native")
    exact = logits.detach().double().requires_grad_()
    p, q = teacher.double().softmax(-1), exact.softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean()
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    gradient, untaught = torch.autograd.grad(got * 3, (logits, teacher), allow_unused=True)
    assert gradient.dtype == dtype and untaught is None
    assert_close(gradient, torch.autograd.grad(expected * 3, exact)[0], 1e-5 if dtype == torch.float32 else ROUNDING)


@pytest.mark.parametrize("elements", [2**18, 100])
def test_divergence_of_the_reference_is_the_formula(elements, monkeypatch):
    monkeypatch.setitem(reference._ELEMENTS, "cpu", elements)
    logits, teacher = (random(2, 3, 50, seed=seed).double().requires_grad_() for seed in (0, 1))
    p, q = teacher.softmax(-1), logits.softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean()
    got = ops.divergence(logits, teacher, backend="reference")
    assert_close(got, expected, 1e-12)
    assert_close(torch.autograd.grad(2 * got, logits)[0], torch.autograd.grad(2 * expected, logits)[0], 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_divergence_of_extreme_logits(backend):
    logits = torch.tensor([[-1e4, 1e4, 0.0], [1e3, 1e3, 1e3]], requires_grad=True)
    same = ops.divergence(logits, logits + 3.0, backend=backend)
    assert same.item() == pytest.approx(0, abs=1e-3)
    far = ops.divergence(logits, logits.detach().flip(-1), backend=backend)
    assert torch.autograd.grad(far, logits)[0].isfinite().all()
    assert ops.divergence(torch.full((1, 70), math.nan), torch.zeros(1, 70), backend=backend).isnan()


@needs_native
def test_dropout_drops_its_share_and_no_more():
    x = torch.ones(1000, 1000, requires_grad=True)
    torch.manual_seed(0)
    y = ops.dropout(x, 0.1, backend="native")
    kept = y != 0
    assert (y[kept] == 1 / 0.9).all()
    assert kept.double().mean().item() == pytest.approx(0.9, abs=0.0015)  # 5 standard deviations
    for other in (kept.roll(1, 0), kept.roll(1, 1), kept.roll(64, 1)):
        assert (kept & other).double().mean().item() == pytest.approx(0.81, abs=0.002)
    (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, 2.0))
    assert torch.equal(gradient, 2 * y.detach())
    again = ops.dropout(x, 0.1, backend="native")
    assert (kept & (again != 0)).double().mean().item() == pytest.approx(0.81, abs=0.002)
    torch.manual_seed(0)
    assert torch.equal(ops.dropout(x, 0.1, backend="native"), y)


def all_bits():
    def collect(function, inputs):
        inputs = [x.detach().requires_grad_() for x in inputs]
        outputs = function(*inputs, backend="native")
        cotangents = [random(*y.shape, seed=9) for y in outputs]
        return [y.detach() for y in outputs] + list(torch.autograd.grad(outputs, inputs, cotangents))

    logits, targets = cross_entropy_inputs(50, 700)
    torch.manual_seed(0)
    return [
        *collect(shift_mix, shift_inputs(100, 300)),
        *collect(gated_wkv, gated_inputs(100, 130)),
        *collect(relu_squared, [random(50000)]),
        *collect(gate, [random(50000), random(50000, seed=1)]),
        *collect(lambda x, backend: [ops.dropout(x, 0.2, backend=backend)], [random(50000)]),
        *collect(lambda x, backend: [ops.cross_entropy(x, targets, 0.01, backend=backend)], [logits]),
        *collect(lambda x, backend: [ops.divergence(x, logits.flip(-1), backend=backend)], [logits]),
    ]


@needs_native
def test_same_bits_on_any_threads_and_instruction_set():
    expected = all_bits()
    for number in (1, 2, 5):
        with threads(number):
            assert_same_bits(all_bits(), expected)
    for result in on_every_instruction_set(all_bits):
        assert_same_bits(result, expected)


@needs_native
def test_half_rounds_to_nearest_even_as_torch_does():
    x = torch.cat([torch.arange(1, 3000) / 64, torch.tensor([0.0, 1e-21, 1.84e19, math.inf])])  # ties among the squares
    y = ops.relu_squared(x, dtype=HALF, backend="native")
    assert torch.equal(y.view(torch.int16), x.square().to(HALF).view(torch.int16))
    y = ops.relu_squared(torch.tensor([math.nan, -1.0, 2.0]), dtype=HALF, backend="native")
    assert y[0].isnan() and y[1:].tolist() == [0, 4]


@needs_native
@pytest.mark.filterwarnings("ignore")
def test_compiles_without_a_graph_break():
    def function(decay, first, k, v, state, opening):
        a, b = ops.shift_mix(k, state[:, 0], (decay, first), dtype=HALF)
        y, state = ops.gated_wkv(decay, first, a, b, opening, state)
        return ops.gate(opening, y), ops.relu_squared(ops.lif_add(v, y)[0]), state

    inputs = gated_inputs(33, 17)
    cotangents = cotangents_for(function, inputs)
    expected = run(function, inputs, cotangents, torch.float32)
    actual = run(torch.compile(function, fullgraph=True, backend="aot_eager"), inputs, cotangents, torch.float32)
    for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        assert_close(a, e, 1e-6)


@needs_native
@pytest.mark.filterwarnings("ignore")
def test_custom_operators_keep_torch_rules():
    x, last, *mixes = (t.requires_grad_() for t in shift_inputs(5, 3))
    logits, targets = cross_entropy_inputs(3, 5)
    torch.library.opcheck(mix._shift_mix_op, (x, last, mixes, False))
    torch.library.opcheck(pointwise._relu_squared_op, (x, True))
    torch.library.opcheck(pointwise._gate_op, (x, x.detach().clone().requires_grad_(), False))
    torch.library.opcheck(pointwise._dropout_op, (x, torch.tensor([7]), 0.5))
    torch.library.opcheck(loss._cross_entropy_op, (logits.requires_grad_(), targets, 0.1))
    torch.library.opcheck(loss._divergence_op, (logits, logits.detach().flip(-1)))


def test_wrong_shapes_are_named():
    x, last, *mixes = shift_inputs(4, 3)
    with pytest.raises(ValueError, match="4 mixes, expected 1 to 3"):
        ops.shift_mix(x, last, [*mixes, mixes[0]])
    with pytest.raises(ValueError, match=r"opening has shape \(2, 3\), expected \(2, 4, 3\)"):
        ops.gate(last, x)
    with pytest.raises(ValueError, match=r"targets has shape \(2,\), expected \(2, 4\)"):
        ops.cross_entropy(x, torch.zeros(2, dtype=torch.int64))

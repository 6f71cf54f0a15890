"""The Triton kernels in Triton's interpreter: run by test_ops_triton.py in a process with TRITON_INTERPRET=1.

The same tests as those of the native operators, at sizes that the interpreter can do.
"""

import math

import pytest
import torch
from op_checks import assert_close, assert_same_bits, generator, run
from test_ops import first_flips, lif_cotangents, lif_inputs, wkv_cotangents, wkv_in_parts, wkv_inputs
from test_ops_event import SETTINGS, both, cotangents_for, event_inputs, one

from spikegpt import ops
from spikegpt.config import ModelConfig
from spikegpt.errors import UserError
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.ops import triton

LENGTHS_AND_WIDTHS = [(1, 3), (15, 35), (16, 3), (33, 5)]
"""Around the blocks of 16 tokens and 32 channels."""
HALVES = [torch.bfloat16, torch.float16]


def test_it_is_there():
    assert ops.available()["triton"] is True


def against(inputs, cotangents, function, tolerance, backend="triton"):
    """Outputs and gradients beside the reference's in double precision."""
    expected = run(lambda *x: function(*x, backend="reference"), inputs, cotangents, torch.float64)
    actual = run(lambda *x: function(*x, backend=backend), inputs, cotangents, torch.float32)
    for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        assert_close(a, e, tolerance)


# wkv


@pytest.mark.parametrize(("time", "channels"), LENGTHS_AND_WIDTHS)
def test_wkv_against_double(time, channels):
    inputs = wkv_inputs(time, channels)
    against(inputs, wkv_cotangents(inputs[2]), ops.wkv, 1e-5)


@pytest.mark.parametrize("keys", ["alternating", "rising", "falling"])
def test_wkv_extreme_keys(keys):
    inputs = wkv_inputs(33, 2, batch=1)
    inputs[2] = {
        "alternating": torch.where(torch.arange(33) % 2 == 0, 80.0, -80.0)[None, :, None].expand(1, 33, 2),
        "rising": torch.linspace(-80, 80, 33)[None, :, None].expand(1, 33, 2),
        "falling": torch.linspace(80, -80, 33)[None, :, None].expand(1, 33, 2),
    }[keys].clone()
    against(inputs, wkv_cotangents(inputs[2]), ops.wkv, 2e-4)


@pytest.mark.parametrize(("decay", "first"), [(-150.0, 0.0), (-1e-6, 60.0), (-150.0, -100.0), (-1.0, 100.0)])
def test_wkv_extreme_decay_and_bonus(decay, first):
    inputs = wkv_inputs(18, 3, batch=1)
    inputs[0], inputs[1] = torch.full((3,), decay), torch.full((3,), first)
    against(inputs, wkv_cotangents(inputs[2]), ops.wkv, 1e-4)


def test_wkv_from_nothing():
    inputs = wkv_inputs(20, 3)[:4]
    against(inputs, wkv_cotangents(inputs[2]), ops.wkv, 1e-5)


@pytest.mark.parametrize("cuts", [[7], [1, 16, 17]])
def test_wkv_in_parts_with_the_state_carried(cuts):
    inputs = wkv_inputs(34, 3)
    cotangents = wkv_cotangents(inputs[2])
    whole = run(lambda *x: ops.wkv(*x, backend="triton"), inputs, cotangents, torch.float32)
    parts = run(lambda *x: wkv_in_parts(cuts, *x, "triton"), inputs, cotangents, torch.float32)
    assert_same_bits(parts[0], whole[0])
    for a, e in zip(parts[1], whole[1], strict=True):
        assert_close(a, e, 1e-5)


def gated(decay, first, k, v, state, gate, **settings):
    return ops.gated_wkv(decay, first, k, v, gate, state, **settings)


def gated_inputs(time, channels):
    return [*wkv_inputs(time, channels), torch.randn(2, time, channels, generator=generator(5)) * 3]


@pytest.mark.parametrize(("time", "channels"), [(3, 2), (16, 35), (19, 3)])
def test_gated_wkv_against_double(time, channels):
    inputs = gated_inputs(time, channels)
    against(inputs, wkv_cotangents(inputs[2]), gated, 1e-5)
    y, _ = gated(*inputs, dtype=torch.bfloat16, backend="triton")
    assert y.dtype == torch.bfloat16
    assert_close(y, gated(*inputs, backend="triton")[0], 2**-7)  # the interpreter cuts where a GPU rounds


# lif


@pytest.mark.parametrize("tau", [2.0, 3.3])
@pytest.mark.parametrize(("time", "channels"), LENGTHS_AND_WIDTHS)
def test_lif_against_double(time, channels, tau):
    inputs = lif_inputs(time, channels)
    cotangents = lif_cotangents(inputs[0])
    settings = {"tau": tau, "threshold": 1.1, "alpha": 2.5}
    expected = run(lambda *x: ops.lif(*x, **settings, backend="reference"), inputs, cotangents, torch.float64)
    actual = run(lambda *x: ops.lif(*x, **settings, backend="triton"), inputs, cotangents, torch.float32)
    kept = ~first_flips(actual[0][0], expected[0][0], inputs, settings)
    assert kept.sum() >= kept.numel() - 2
    for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        assert_close(a.movedim(-1, 1)[kept], e.movedim(-1, 1)[kept], 1e-5)


@pytest.mark.parametrize("tau", [2.0, 3.3])
def test_lif_rounds_as_the_reference_does(tau):
    inputs = lif_inputs(60, 40)
    assert_same_bits(ops.lif(*inputs, tau=tau, backend="triton"), ops.lif(*inputs, tau=tau, backend="reference"))


def test_lif_in_parts_with_the_membrane_carried():
    def in_parts(x, membrane):
        first, membrane = ops.lif(x[:, :17], membrane, backend="triton")
        second, membrane = ops.lif(x[:, 17:], membrane, backend="triton")
        return torch.cat([first, second], 1), membrane

    inputs = lif_inputs(34, 3)
    cotangents = lif_cotangents(inputs[0])
    whole = run(lambda *x: ops.lif(*x, backend="triton"), inputs, cotangents, torch.float32)
    parts = run(in_parts, inputs, cotangents, torch.float32)
    assert_same_bits(parts[0] + parts[1], whole[0] + whole[1])


def test_lif_add_is_lif_and_an_addition():
    x, membrane = lif_inputs(19, 5)
    residual = torch.randn(x.shape, generator=generator(7))
    cotangents = lif_cotangents(x)
    expected = run(
        lambda x, r, m: ops.lif_add(x, r, m, backend="reference"), [x, residual, membrane], cotangents, torch.float32
    )
    actual = run(
        lambda x, r, m: ops.lif_add(x, r, m, backend="triton"), [x, residual, membrane], cotangents, torch.float32
    )
    assert_same_bits(actual[0], expected[0])
    for a, e in zip(actual[1], expected[1], strict=True):
        assert_close(a, e, 1e-6)


# event


@pytest.mark.parametrize("settings", SETTINGS[::5], ids=str)
@pytest.mark.parametrize(("time", "channels"), [(5, 35), (33, 3)])
def test_event_rounds_and_differentiates_as_the_reference_does(time, channels, settings):
    inputs, threshold, unit = event_inputs(time, channels)
    expected = both(inputs, threshold, unit, torch.float32, "reference", **settings)
    actual = both(inputs, threshold, unit, torch.float32, "triton", **settings)
    for a, e in zip(actual[0], expected[0], strict=True):
        assert torch.equal(a, e)
    for a, e in zip(actual[1], expected[1], strict=True):
        assert_close(a, e, 1e-5)


@pytest.mark.parametrize("settings", [s for s in SETTINGS if s["reset"] == "hard"], ids=str)
def test_memoryless_event_is_the_reference(settings):
    (x, _, membrane), threshold, unit = event_inputs(9, 130)
    results = []
    for backend in ("triton", "reference"):
        leaf = x.clone().requires_grad_()
        events, after = ops.event(leaf, threshold, unit, None, membrane, **settings, backend=backend)
        assert torch.equal(after, membrane)
        results.append((events, torch.autograd.grad(events, leaf, cotangents_for(x)[0])[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert_close(results[0][1], results[1][1], 1e-6)


# token shift, relu^2


@pytest.mark.parametrize(("time", "channels", "count"), [(1, 3, 1), (17, 130, 3), (40, 5, 2)])
def test_shift_mix_against_double(time, channels, count):
    g = generator()
    x, last = torch.randn(2, time, channels, generator=g), torch.randn(2, channels, generator=g)
    mixes = [torch.rand(1, 1, channels, generator=g) * 1.4 - 0.2 for _ in range(count)]
    cotangents = [torch.randn(x.shape, generator=g) for _ in mixes]

    def function(x, last, *mixes, backend):
        return ops.shift_mix(x, last, mixes, backend=backend)

    against([x, last, *mixes], cotangents, function, 1e-5)


def test_relu_squared_against_double():
    x, cotangent = torch.randn(2, 3, 5, 500, generator=generator())
    against([x], [cotangent], lambda x, backend: [ops.relu_squared(x, backend=backend)], 1e-6)


def test_gate_against_double():
    opening, x, cotangent = torch.randn(3, 2, 5, 130, generator=generator()) * 3
    against([opening, x], [cotangent], lambda *a, backend: [ops.gate(*a, backend=backend)], 1e-6)
    assert ops.gate(opening * 100, x, backend="triton").isfinite().all()


@pytest.mark.parametrize("vocabulary", [7, 5000])
def test_cross_entropy_against_double(vocabulary):
    logits = torch.randn(2, 3, vocabulary, generator=generator()) * 4
    targets = torch.randint(vocabulary, (2, 3), generator=generator(1))

    def function(logits, backend):
        return [ops.cross_entropy(logits, targets, 0.1, backend=backend)]

    against([logits], [torch.tensor(1.5)], function, 1e-5)
    half = logits.bfloat16().requires_grad_()
    (grad,) = torch.autograd.grad(function(half, "triton"), half)
    assert grad.dtype == torch.bfloat16
    with torch.no_grad():
        assert ops.cross_entropy(logits, targets, backend="triton") > 0
    logits[0, 0, 3] = math.nan
    assert ops.cross_entropy(logits, targets, backend="triton").isnan()


def test_ignored_targets_do_not_count():
    logits = torch.randn(2, 3, 70, generator=generator()) * 4
    targets = torch.randint(70, (2, 3), generator=generator(1))
    targets[0, 1] = targets[1, 2] = ops.IGNORED

    def function(logits, backend):
        return [ops.cross_entropy(logits, targets, 0.5, backend=backend)]

    against([logits], [torch.tensor(1.5)], function, 1e-5)
    with torch.no_grad():
        logits[0, 1, 3] = math.nan
    leaf = logits.requires_grad_()
    (loss,) = function(leaf, "triton")
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.isfinite() and gradient.isfinite().all() and not gradient[0, 1].any() and not gradient[1, 2].any()
    assert ops.cross_entropy(leaf, torch.full_like(targets, ops.IGNORED), backend="triton").isnan()


@pytest.mark.parametrize("wrong", [-1, 70, 10**12])
def test_targets_outside_of_the_vocabulary_are_refused_and_never_read(wrong):
    logits, targets = torch.zeros(4, 70, requires_grad=True), torch.tensor([1, wrong, 2, 3])
    with pytest.raises(IndexError, match=f"target {wrong} is neither 0 to 69 nor -100"):
        ops.cross_entropy(logits, targets, backend="triton")
    loss = triton._loss.cross_entropy(logits, targets, 0.0)  # as on a GPU, where nobody waits to look at the targets
    assert loss.isnan()
    assert torch.autograd.grad(loss, logits)[0].shape == logits.shape


# Any type, no tokens, NaN, the compiler


@pytest.mark.parametrize("dtype", HALVES)
def test_half_inputs_are_computed_in_full(dtype):
    decay, first, k, v, state, gate = gated_inputs(18, 3)
    k, v, gate, x = (t.to(dtype).requires_grad_() for t in (k, v, gate, k * 2))
    g = generator(3)
    mixes = [torch.rand(3, generator=g) for _ in range(3)]
    one_each = torch.ones(3)

    def everything(backend, k, v, gate, x):
        y, _ = ops.wkv(decay, first, k, v, state, backend=backend)
        z, _ = ops.gated_wkv(decay, first, k, v, gate, state, backend=backend)
        spikes, _ = ops.lif(x, backend=backend)
        events, _ = ops.event(x, one_each, one_each / 4, one_each / 2, backend=backend)
        narrow, _ = ops.event(x, one_each, one_each / 4, one_each / 2, dtype=dtype, backend=backend)
        assert narrow.dtype == dtype and torch.equal(narrow.float(), events)
        points, _ = ops.event(x, one_each, one_each / 4, backend=backend)
        squared = ops.relu_squared(x, dtype=torch.float32, backend=backend)
        return [y, z, spikes, events, points, squared]

    full = [t.detach().float().requires_grad_() for t in (k, v, gate, x)]
    expected = everything("reference", *full)
    actual = everything("triton", k, v, gate, x)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        assert_close(a.detach(), e.detach(), 1e-5)
    cotangents = [torch.randn(a.shape, generator=g) for a in actual]
    grads = torch.autograd.grad(actual, [k, v, gate, x], cotangents)
    wanted = torch.autograd.grad(expected, full, cotangents)
    for a, e in zip(grads, wanted, strict=True):
        assert a.dtype == dtype
        assert_close(a, e, 2**-6)  # several gradients of half width are added up
    for a, e in zip(
        ops.shift_mix(x.detach().float(), state[:, 0], mixes, dtype=dtype, backend="triton"),
        ops.shift_mix(x.detach().float(), state[:, 0], mixes, backend="reference"),
        strict=True,
    ):
        assert a.dtype == dtype
        assert_close(a, e, 2**-7)  # the interpreter cuts where a GPU rounds


def test_no_tokens_leave_the_state_alone():
    inputs = wkv_inputs(0, 6)
    outputs, gradients = run(lambda *x: ops.wkv(*x, backend="triton"), inputs, wkv_cotangents(inputs[2]), torch.float32)
    assert outputs[0].shape == (2, 0, 6)
    assert torch.equal(outputs[1], inputs[4])
    assert_close(gradients[4], wkv_cotangents(inputs[2])[1], 1e-6)
    membrane = torch.rand(2, 6)
    assert torch.equal(ops.lif(inputs[2], membrane, backend="triton")[1], membrane)


def test_nan_is_not_hidden():
    decay, first, k, v, _ = wkv_inputs(5, 3)
    k[0, 2, 1] = math.nan
    y, state = ops.wkv(decay, first, k, v, backend="triton")
    assert y[0, 2:, 1].isnan().all() and state[0, :, 1].isnan().all()
    assert y[1].isfinite().all()
    assert ops.lif(k, backend="triton")[1][0, 1].isnan()
    assert ops.event(k, torch.ones(3), torch.ones(3), backend="triton")[0][0, 2, 1].isnan()
    assert ops.relu_squared(k, backend="triton")[0, 2, 1].isnan()


def test_inputs_are_read_only_and_may_be_strided():
    decay, first, k, v, state = wkv_inputs(17, 6)
    before = [x.clone() for x in (decay, first, k, v, state)]
    strided = k.transpose(1, 2).contiguous().transpose(1, 2)
    assert_same_bits(ops.wkv(decay, first, strided, v, state, backend="triton"), ops.wkv(*before, backend="triton"))
    assert_same_bits([decay, first, strided.contiguous(), v, state], before)


def test_only_the_state_has_a_gradient():
    """A result that is not used has no gradient to begin with."""
    inputs = wkv_inputs(17, 2)
    grads = []
    for backend in ("triton", "reference"):
        leaf = inputs[2].clone().requires_grad_()
        _, state = ops.wkv(*inputs[:2], leaf, *inputs[3:], backend=backend)
        _, membrane = ops.lif(leaf, backend=backend)
        grads += torch.autograd.grad([state.sum(), membrane.sum()], leaf)
    assert_close(*grads, 1e-5)


@pytest.mark.filterwarnings("ignore")
def test_compiles_without_a_graph_break():
    def function(decay, first, k, v, state, x):
        a, b = ops.shift_mix(x, state[:, 0], [decay, first], backend="triton")
        y, state = ops.gated_wkv(decay, first, k, v, a, state, backend="triton")
        spikes, membrane = ops.lif_add(y * 3, ops.relu_squared(b, backend="triton"), backend="triton")
        events, _ = ops.event(y, decay.detach() ** 2, decay.detach() ** 2, backend="triton")
        return spikes + events, membrane, state

    inputs = [*wkv_inputs(17, 3), torch.randn(2, 17, 3, generator=generator(4))]
    cotangents = [*lif_cotangents(inputs[2]), wkv_cotangents(inputs[2])[1]]
    expected = run(function, inputs, cotangents, torch.float32)
    actual = run(torch.compile(function, fullgraph=True, backend="aot_eager"), inputs, cotangents, torch.float32)
    for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        assert_close(a, e, 1e-6)


def test_custom_operators_keep_torch_rules():
    decay, first, k, v, state, gate = (x.requires_grad_() for x in gated_inputs(2, 2))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton._wkv._op, (decay, first, k, v, gate, state, torch.float32, True), test_utils=checks)
    x, membrane = (x.requires_grad_() for x in lif_inputs(2, 2))
    torch.library.opcheck(triton._lif._op, (x, None, membrane, 2.0, 1.0, 2.0, True), test_utils=checks)
    ones = torch.ones(2)
    torch.library.opcheck(
        triton._event._op,
        (x, ones, ones, ones, membrane, 15, 2, True, True, 0.0, torch.float32, True),
        test_utils=checks,
    )
    torch.library.opcheck(triton._event._point_op, (x, ones, ones, 15, 2, True, 0.0, torch.float32), test_utils=checks)
    torch.library.opcheck(triton._mix._op, (x, membrane, ones[None], torch.float32), test_utils=checks)
    torch.library.opcheck(triton._mix._gate_op, (x, x.detach(), torch.float32), test_utils=checks)
    torch.library.opcheck(triton._loss._op, (x, torch.zeros(2, 2, dtype=torch.int64), 0.1), test_utils=checks)
    torch.library.opcheck(triton._mix._squared_op, (x, torch.float32), test_utils=checks)


# The model, the doors


@pytest.mark.parametrize("spikes", ["after", "before"])
def test_a_model_is_the_same_model(spikes):
    config = ModelConfig(vocab_size=11, n_layer=1, n_embd=8, spikes=spikes, dropout=0.0)
    ids = torch.randint(11, (2, 18), generator=generator())
    results = []
    for backend in ("reference", "triton"):
        torch.manual_seed(0)
        model = SpikeGPT(config, backend=backend)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator(2)) * parameter.shape[1] ** -0.5)
        logits, state = model(ids)
        logits.square().mean().backward()
        results.append([logits.detach(), *state.detach().named().values(), *(p.grad for p in model.parameters())])
    for a, e in zip(results[1], results[0], strict=True):
        assert_close(a, e, 1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spikes", ["after", "none", "before"])
def test_a_model_compiles_without_a_graph_break(spikes):
    model = SpikeGPT(
        ModelConfig(vocab_size=11, n_layer=1, n_embd=8, spikes=spikes, dropout=0.0), backend="triton"
    ).eval()
    ids = torch.randint(11, (1, 3), generator=generator())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(ids)[0].detach(), model(ids)[0].detach(), 1e-5)


def test_a_choice_is_kept_or_refused():
    with pytest.raises(UserError, match=r"Triton operators cannot be used: they compute in float32, .*float64"):
        ops.lif(torch.zeros(1, 2, 3, dtype=torch.float64), backend="triton")
    with pytest.raises(UserError, match=r"tensors are on cpu and on meta; move"):
        ops.lif(torch.zeros(1, 2, 3), torch.zeros(1, 3, device="meta"), backend="triton")
    assert ops.lif(torch.zeros(1, 2, 3, dtype=torch.float64))[0].dtype == torch.float64
    for function in (lambda x, **how: ops.dropout(x, 0.5, **how), lambda x, **how: ops.tally(x, 1, **how)):
        with pytest.raises(UserError, match=r"Triton operators cannot be used: .*float64"):
            function(torch.zeros(1, 2, 3, dtype=torch.float64), backend="triton")
    assert ops.tally(torch.ones(1, 2, 3), 1, backend="triton").tolist() == [6, 6]
    assert ops.event(torch.full((1, 1, 1), 2.0), one(1.0), one(1.0), backend="triton")[0].item() == 1

"""Parameter groups, optimisers and the learning rate, as formulas."""

import math

import pytest
import torch

from spikegpt.config import ModelConfig, TrainConfig
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.training.loss import loss_fn
from spikegpt.training.optim import lr_at, make_optimizer, param_groups


@pytest.mark.parametrize("spikes", ["after", "none", "before"])
def test_only_matrices_decay(spikes):
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=16, vocab_size=32, spikes=spikes))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices, vectors = ({names[id(p)] for p in group["params"]} for group in param_groups(model, 0.1))
    projections = ("key.weight", "value.weight", "receptance.weight", "output.weight", "head.weight")
    assert matrices == {name for name in names.values() if name.endswith(projections)}
    assert matrices | vectors == set(names.values())
    assert {"emb.weight", "blocks.0.att.time_mix_k", "blocks.1.ln2.weight", "ln_out.bias"} <= vectors


def test_first_adamw_step_is_the_formula():
    layer = torch.nn.Linear(3, 2, bias=True)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    optimizer = make_optimizer(layer, TrainConfig(lr=0.01, weight_decay=0.5))
    layer(torch.tensor([[1.0, -2.0, 3.0]])).sum().backward()
    optimizer.step()
    for name, parameter in layer.named_parameters():
        shrink = 1 - 0.01 * 0.5 if name == "weight" else 1.0
        # With both moments corrected for their start, the first step is the gradient's sign.
        torch.testing.assert_close(parameter.detach(), before[name] * shrink - 0.01 * parameter.grad.sign())


def test_adam_decays_nothing():
    optimizer = make_optimizer(torch.nn.Linear(3, 2), TrainConfig(optimizer="adam", weight_decay=0.5))
    assert type(optimizer) is torch.optim.Adam
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0]


def test_optimiser_is_fused_on_the_cpu():
    assert make_optimizer(torch.nn.Linear(3, 2), TrainConfig()).param_groups[0]["fused"]


def test_cosine():
    config = TrainConfig(steps=101, warmup=1, lr=1.0, lr_min=0.1)
    assert lr_at(0, config) == 1.0
    assert lr_at(1, config) == 1.0
    assert lr_at(100, config) == pytest.approx(0.1)
    assert lr_at(34, config) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 33 / 99)))


def test_warm_up_is_linear_and_never_zero():
    config = TrainConfig(steps=100, warmup=4, lr=1.0)
    assert [lr_at(step, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_warmup_stable_decay():
    config = TrainConfig(steps=101, warmup=10, lr=1.0, lr_min=0.0, schedule="wsd", decay=0.2)
    assert [lr_at(step, config) for step in (10, 50, 80)] == [1.0, 1.0, 1.0]
    assert lr_at(81, config) == pytest.approx(1.0)
    assert lr_at(91, config) == pytest.approx(1 - 10 / 19)
    assert lr_at(100, config) == pytest.approx(0.0)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 50), (2, 2), (3, 1), (10, 0)])
def test_short_schedules_stay_in_range(schedule, steps, warmup):
    config = TrainConfig(steps=steps, warmup=warmup, schedule=schedule, decay=1.0)
    rates = [lr_at(step, config) for step in range(steps)]
    assert all(0 < rate <= config.lr for rate in rates)


def test_loss_is_cross_entropy_and_its_gradient_too():
    logits = (torch.randn(2, 5, 7) * 4).requires_grad_()
    targets = torch.randint(0, 7, (2, 5))
    expected = torch.nn.functional.cross_entropy(logits.view(-1, 7), targets.view(-1))
    (grad,) = torch.autograd.grad(expected, logits)
    loss = loss_fn(logits, targets, penalty=0.0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss * 3, logits)[0], grad * 3)


def test_logit_term_is_in_the_gradient_only():
    logits = (torch.randn(2, 5, 7) * 4).requires_grad_()
    targets = torch.randint(0, 7, (2, 5))
    plain, extra = loss_fn(logits, targets, penalty=0.0), loss_fn(logits, targets, penalty=1e-4)
    assert torch.equal(plain, extra)
    difference = torch.autograd.grad(extra, logits)[0] - torch.autograd.grad(plain, logits)[0]
    largest, where = logits.detach().max(-1, keepdim=True)
    expected = torch.zeros_like(difference).scatter(-1, where, largest * 1e-4 / 10)
    torch.testing.assert_close(difference, expected, rtol=1e-3, atol=1e-9)


def test_loss_of_huge_logits_is_finite():
    logits = torch.tensor([[[1e4, -1e4, 0.0]]], requires_grad=True)
    loss = loss_fn(logits, torch.tensor([[1]]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert torch.isfinite(logits.grad).all()

"""bf16 matrix products over float32 weights, with the neurons in float32: at most 1% more loss."""

import json

import pytest
import torch
import training

from spikegpt.config import ModelConfig
from spikegpt.model.neurons import LIF
from spikegpt.model.spikegpt import SpikeGPT


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return training.make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def final_loss(out, corpus, spikes, precision, seed):
    """Mean of the last 30 of 120 steps, from the same weights on the same batches."""
    settings = {"steps": 120, "precision": precision, "log_every": 30, "eval_every": 0, "save_every": 0, "seed": seed}
    training.run(out, corpus, model={"spikes": spikes, "dropout": 0.0}, train=settings, valid=False)
    first, *_, last = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert last < 0.8 * first
    return last


@pytest.mark.parametrize(("spikes", "seeds"), [("after", 4), ("none", 1), ("before", 4)])
def test_bf16_costs_at_most_one_percent(tmp_path, corpus, spikes, seeds):
    """On average over seeds: where a membrane decides, 120 steps differ by up to 4% either way from seed to seed."""
    full, half = (
        sum(final_loss(tmp_path / f"{precision}{seed}", corpus, spikes, precision, seed) for seed in range(seeds))
        for precision in ("no", "bf16")
    )
    assert 0.95 * full < half < 1.01 * full


def test_spikes_are_decided_in_float32():
    model = SpikeGPT(ModelConfig(vocab_size=16, n_layer=1, n_embd=32)).train()
    heard = []
    for module in model.modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda _module, _inputs, outputs: heard.append(outputs))
    with torch.autocast("cpu", torch.bfloat16):
        logits, state = model(torch.zeros(2, 8, dtype=torch.int64))
    assert {tensor.dtype for outputs in heard for tensor in outputs} == {torch.float32}
    assert {tensor.dtype for name, tensor in state.named().items() if "shift" not in name} == {torch.float32}
    logits.float().sum().backward()
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


def test_logits_are_float32_outside_training():
    model = SpikeGPT(ModelConfig(vocab_size=16, n_layer=1, n_embd=32)).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.zeros(2, 8, dtype=torch.int64))[0].dtype == torch.float32

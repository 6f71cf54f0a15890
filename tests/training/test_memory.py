"""The formula for memory against what PyTorch keeps, and the advice that is made of it."""

import contextlib
import dataclasses

import pytest
import torch
from places import ROOT

from spikegpt.config import ModelConfig, TrainConfig, preset
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.training.memory import advise, block_bytes, count_parameters, is_out_of_memory, training_memory


def kept(config, precision):
    """Bytes a token keeps for the way back, parameters and their copies left out."""
    batch, length = 2, 256
    model = SpikeGPT(config).train()
    known = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    shapes = {tensor.numel() for tensor in model.parameters()}
    seen = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and tensor.numel() not in shapes:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        model(torch.zeros(batch, length, dtype=torch.int64))
    return sum(size for size, _ in seen.values()) / (batch * length)


@pytest.mark.parametrize("spikes", ["after", "none", "before"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_block_keeps_what_the_formula_says(spikes, precision):
    """On the CPU, where the native operators keep a little more than a GPU's fused ones."""
    two, three = (ModelConfig(vocab_size=16, n_layer=n, n_embd=48, spikes=spikes, dropout=0.1) for n in (2, 3))
    measured = kept(three, precision) - kept(two, precision)
    formula = block_bytes(two, 4 if precision == "no" else 2)
    assert formula == pytest.approx(measured, rel=0.3)


def test_parameters_are_counted():
    config = ModelConfig(vocab_size=11, n_layer=2, n_embd=16)
    total, matrices = count_parameters(config)
    model = SpikeGPT(config)
    assert total == sum(parameter.numel() for parameter in model.parameters())
    assert matrices == 11 * 16 + 2 * (4 * 16**2 + 16**2 + 8 * 16**2)


def test_what_takes_less():
    model, config = preset("216m"), TrainConfig(batch_size=16, precision="bf16")
    whole = training_memory(model, config)
    assert training_memory(model, TrainConfig(batch_size=8, precision="bf16")).activations == whole.activations / 2
    assert (
        training_memory(model, TrainConfig(batch_size=16, precision="bf16", recompute=True)).total < whole.total / 1.5
    )
    split = training_memory(model, TrainConfig(batch_size=16, precision="bf16", shard=True), 8)
    assert split.weights < whole.weights / 2
    assert split.activations == whole.activations


def test_advice_is_the_same_step_in_numbers():
    told = advise(preset("46m"), TrainConfig(batch_size=4096, accumulate=2), torch.device("cpu"), 1)
    assert "\n" not in told
    words = told.replace(",", " ").split()
    batch, steps = (int(words[words.index(name) + 1]) for name in ("--batch-size", "--accumulate"))
    assert batch * steps == 8192
    assert batch < 4096
    nothing = advise(preset("46m", context=10**8), TrainConfig(batch_size=2), torch.device("cpu"), 1)
    assert "not even one sequence fits" in nothing


def test_an_allocation_that_fails_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**16)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_the_page_has_the_formulas_figures():
    page = (ROOT / "docs" / "scale-out.md").read_text(encoding="utf-8")
    for name, batch in (("46m", 64), ("125m", 64), ("216m", 16), ("260m", 16)):
        model, config = preset(name), TrainConfig(batch_size=batch, precision="bf16")
        again = dataclasses.replace(config, recompute=True)
        plain, small = training_memory(model, config), training_memory(model, again)
        split = training_memory(model, dataclasses.replace(again, shard=True), 8)
        figures = [*plain, plain.total, small.total, split.total]
        row = f"| {name} | {count_parameters(model)[0] / 1e6:.1f}M | {batch} | "
        assert row + " | ".join(f"{figure / 1e9:.1f}" for figure in figures) + " |" in page

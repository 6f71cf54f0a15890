"""The table of matrices says what the model has."""

import dataclasses

import pytest
import torch

from spikegpt.config import EMPHASIS, EventConfig, ModelConfig
from spikegpt.model import SpikeGPT
from spikegpt.model.layers import Linear
from spikegpt.model.neurons import EventNeuron, Neuron
from spikegpt.model.sites import neuron_groups, sites, sites_by_neuron


def shape(spikes, architecture):
    event = EventConfig(shared=True) if spikes == "shared" else None
    spikes = "before" if event else spikes
    return ModelConfig(
        n_layer=2, n_embd=8, n_ffn=20, vocab_size=30, spikes=spikes, architecture=architecture, event=event
    )


@pytest.fixture(params=["RWKV", "RWKV-ffnPre"])
def architecture(request):
    return request.param


@pytest.mark.parametrize("spikes", ["after", "none", "before", "shared"])
def test_every_matrix_and_no_other_is_listed(spikes, architecture):
    config = shape(spikes, architecture)
    model = SpikeGPT(config)
    matrices = {name: (m.in_features, m.out_features) for name, m in model.named_modules() if isinstance(m, Linear)}
    assert {site.name: (site.inputs, site.outputs) for site in sites(config)} == matrices
    assert sum(site.weights for site in sites(config)) == model.matrix_parameters()
    three = {"att.key", "att.value", "att.receptance"}
    assert {site.kind for site in sites(config)} == set(EMPHASIS) - (three if spikes == "shared" else {"att.input"})
    assert [site.name for site in sites(config) if not site.signed] == [
        name for name, (inputs, _) in matrices.items() if inputs == 20
    ]


@pytest.mark.parametrize("spikes", ["after", "none", "before", "shared"])
def test_every_neuron_and_no_other_is_listed(spikes, architecture):
    config = shape(spikes, architecture)
    model = SpikeGPT(config)
    neurons = {name: module for name, module in model.named_modules() if isinstance(module, Neuron)}
    assert {group.name for group in neuron_groups(config)} == set(neurons)
    in_front = sites_by_neuron(config)
    assert set(in_front) == {name for name, module in neurons.items() if isinstance(module, EventNeuron)}
    assert all((neurons[name].width, neurons[name].fan_out) == (s.inputs, s.outputs) for name, s in in_front.items())


@pytest.mark.parametrize("spikes", ["before", "shared"])
def test_matrices_run_in_the_order_listed(spikes, architecture):
    config = shape(spikes, architecture)
    model, ran = SpikeGPT(config).eval(), []
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            module.register_forward_pre_hook(lambda _module, _inputs, name=name: ran.append(name))
    model(torch.zeros(1, 1, dtype=torch.int64))
    assert ran == [site.name for site in sites(config)]


def test_pictures_name_places_and_labels():
    named = {group.name: (group.place, group.label) for group in neuron_groups(shape("before", "RWKV-ffnPre"))}
    assert named["blocks.0.ffnPre.neurons.key"] == ("block 0", "ffnPre key")
    assert named["blocks.1.att.neurons.output"] == ("block 1", "att output")
    assert named["head_neuron"] == ("head", "")
    after = dataclasses.replace(shape("before", "RWKV"), spikes="after", event=None, spike_embedding=True)
    assert [group.label for group in neuron_groups(after)] == ["", "lif1", "lif2", "lif1", "lif2"]

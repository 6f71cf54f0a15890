"""What the model remembers can be read and written by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import SPIKES, make_model

from spikegpt.config import EventConfig, ModelConfig
from spikegpt.errors import UsageError, UserError
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.model.state import State

IDS = torch.tensor([list(b"It was"), list(b"a dark")])


@torch.no_grad()
def after(model: SpikeGPT) -> State:
    return model(IDS)[1]


@pytest.mark.parametrize("spikes", ["after", "none", "before"])
def test_names(spikes: str) -> None:
    names = set(after(make_model(spikes)).named())
    plain = {f"blocks.{i}.{part}" for i in range(2) for part in ("att.shift", "att.wkv", "ffn.shift")}
    lifs = {f"blocks.{i}.{lif}" for i in range(2) for lif in ("lif1", "lif2")}
    assert names == (plain | lifs if spikes == "after" else plain)


def test_names_of_neurons_in_front_of_matrices() -> None:
    config = ModelConfig(n_layer=1, n_embd=8, spikes="before", event=EventConfig(leak=0.5))
    named = SpikeGPT(config).init_state(3).named()
    sites = {"att": ("key", "value", "receptance", "output"), "ffn": ("key", "receptance", "value")}
    membranes = {f"blocks.0.{part}.neurons.{site}" for part, names in sites.items() for site in names}
    assert {name for name in named if "neuron" in name} == membranes | {"head_neuron"}
    assert named["blocks.0.ffn.neurons.value"].shape == (3, 32)


@torch.no_grad()
def test_a_membrane_written_decides_who_fires() -> None:
    model = make_model()
    state = after(model)
    fired = {}
    for value in (-100.0, 100.0):
        written = state.replace({"blocks.1.lif2": torch.full_like(state.named()["blocks.1.lif2"], value)})
        handle = model.blocks[1].lif2.register_forward_hook(
            lambda module, inputs, output, value=value: fired.__setitem__(value, output[0].mean().item())
        )
        model(IDS[:, :1], written)
        handle.remove()
    assert fired == {-100.0: 0.0, 100.0: 1.0}


def test_writing_leaves_the_old_state_alone() -> None:
    state = after(make_model())
    before = state.named()["blocks.0.att.wkv"].clone()
    new = state.replace({"blocks.0.att.wkv": torch.zeros_like(before)})
    assert torch.equal(state.named()["blocks.0.att.wkv"], before)
    assert not new.named()["blocks.0.att.wkv"].any()
    assert all(new.named()[name] is tensor for name, tensor in state.named().items() if name != "blocks.0.att.wkv")


@torch.no_grad()
def test_a_state_from_names_goes_on_as_the_original() -> None:
    model = make_model()
    state = after(model)
    again = State.from_named({name: tensor.clone() for name, tensor in state.named().items()})
    assert torch.equal(model(IDS, again)[0], model(IDS, state)[0])


def test_a_wrong_name_or_shape_is_refused() -> None:
    state = after(make_model())
    with pytest.raises(UserError, match=r"no 'blocks\.7\.lif1'; it has blocks\.0\.att\.shift"):
        state.replace({"blocks.7.lif1": torch.zeros(2, 32)})
    with pytest.raises(UserError, match=r"blocks\.0\.lif1 is \[2, 32\], not \[1, 32\]"):
        state.replace({"blocks.0.lif1": torch.zeros(1, 32)})


def test_saved_and_read_back(tmp_path: Path) -> None:
    state = after(make_model())
    state.save(tmp_path / "state.safetensors")
    read = State.load(tmp_path / "state.safetensors").named()
    assert read.keys() == state.named().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.named().items())
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("content", [b"", b"text", b"\x00" * 100])
def test_a_file_that_is_no_state_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(UserError, match="is not a saved state"):
        State.load(tmp_path / "state")


def test_rows_are_taken_and_put_together() -> None:
    state = after(make_model())
    rows = [state.take([0]), state.take([1])]
    assert [row.batch_size for row in rows] == [1, 1]
    together = State.stack(rows).named()
    assert all(torch.equal(together[name], tensor) for name, tensor in state.named().items())


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), "at least one token"),
        (torch.zeros(0, 3, dtype=torch.int64), "at least one token"),
        (torch.zeros(3, dtype=torch.int64), r"must be \[batch, tokens\]"),
        (torch.zeros(1, 3), "must be int64 or int32, not float32"),
        (torch.zeros(1, 3, dtype=torch.bool), "must be int64 or int32, not bool"),
        (torch.tensor([[0, 256]]), "token 256 is not in the vocabulary of 256"),
        (torch.tensor([[-1, 2]]), "token -1 is not in the vocabulary"),
    ],
)
def test_ids_that_are_none_are_refused(ids, message):
    with pytest.raises(UsageError, match=message):
        make_model()(ids)


def test_another_models_state_is_refused():
    ids = torch.tensor([[1, 2]])
    for kind in SPIKES:
        model = make_model(kind)
        with pytest.raises(UsageError, match="the state is of 2 sequences, not 1"):
            model(ids, model.init_state(2))
        wider = SpikeGPT(ModelConfig(n_layer=2, n_embd=48, spikes=kind))
        deeper = SpikeGPT(ModelConfig(n_layer=3, n_embd=32, spikes=kind))
        for other in (wider, deeper):
            with pytest.raises(UsageError, match="the state is another model's"):
                model(ids, other.init_state(1))
    with pytest.raises(UsageError, match="the state is another model's: blocks.0.lif1 is not as this model has it"):
        make_model("after")(ids, make_model("none").init_state(1))

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch
from tiny import SPIKES, make_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from spikegpt import ops
from spikegpt.checkpoint import save_model
from spikegpt.cli import main
from spikegpt.config import EventConfig, ModelConfig
from spikegpt.errors import UsageError, UserError
from spikegpt.model.neurons import EventNeuron
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.profiling import elementwise as operations
from spikegpt.profiling import energy
from spikegpt.profiling.counts import ProductCounter, Profile, profile

TEXT = "def spike(x):\n    return x >= 1\n" * 8
IDS = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int64)[:48]


def counted(spikes, **options):
    model = make_model(spikes)
    return model, profile(model, IDS, **options)


def only(matrix, x, levels=15):
    with ProductCounter(nn.Sequential(matrix), levels) as counter:
        matrix(x)
    (product,) = counter.products()
    return product


def test_a_layer_of_4_inputs_and_3_outputs_counted_by_hand():
    matrix = nn.Linear(4, 3, bias=False)
    nn.init.constant_(matrix.weight, 0.5)
    with torch.no_grad():
        matrix.weight[0, 2] = 0  # one weight of input 2 is no connection
    product = only(matrix, torch.tensor([[[1.0, 0, -2, 0], [0, 0, 5, 1]]]), levels=5)
    assert product.kind == "graded"
    assert (product.tokens, product.events, product.units, product.clipped) == (2, 4, 9, 1)
    assert product.bit_spikes == 1 + 1 + 2 + 1  # 1, 10, 101, 1
    assert (product.ac, product.mac, product.dense) == (12, 0, 24)
    assert product.activity == 0.5
    assert product.connected == 10  # two of the four events meet a missing connection
    per_token = product.to_dict()
    assert per_token["ac_unit_spikes"] == 9 * 3 / 2 and per_token["ac_bit_spikes"] == 5 * 3 / 2
    assert per_token["bytes_read"] == {"float32": 24, "8-bit": 6, "4-bit": 3}


@pytest.mark.parametrize(
    ("row", "kind"),
    [([0, 1, 1, 0], "binary"), ([0, -1, 1, 0], "ternary"), ([0, -15, 0, 0], "graded"), ([0, 16, 0, 0], "float"),
     ([0, 0.5, 0, 0], "float")],
)  # fmt: skip
def test_only_small_integers_are_spikes(row, kind):
    product = only(nn.Linear(4, 3, bias=False), torch.tensor([row], dtype=torch.float32))
    assert product.kind == kind
    assert product.mac == (12 if kind == "float" else 0)
    assert product.ac == (0 if kind == "float" else 3 * np.count_nonzero(row))


def test_one_float_makes_the_whole_product_multiply():
    matrix = nn.Linear(4, 3, bias=False)
    with ProductCounter(nn.Sequential(matrix)) as counter:
        matrix(torch.tensor([[1.0, 0, 0, 0]]))
        matrix(torch.tensor([[0.3, 0, 0, 0]]))
    (product,) = counter.products()
    assert (product.kind, product.ac, product.mac, product.units) == ("float", 0, 24, 0)


@pytest.mark.parametrize("leak", [0.0, 0.5])
def test_an_event_driven_model_agrees_with_brute_force(leak):
    """Counted again from the neurons' outputs, value by value, rather than from the matrices' inputs."""
    model = make_model("before")
    model = rebuilt(model, EventConfig(leak=leak)) if leak else model
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, EventNeuron):
            module.register_forward_hook(lambda _m, _i, out, name=name: seen.setdefault(name, []).append(out[0][0]))
    result = profile(model, IDS, chunk=17)
    matrices = dict(model.named_modules())
    total = read = 0
    assert len(result.products) == len(seen) == 15
    for product in result.products:
        neuron = "head_neuron" if product.name == "head" else ".neurons.".join(product.name.rsplit(".", 1))
        values = [int(value) for chunk in seen[neuron] for value in chunk.flatten().tolist()]
        outputs, inputs = matrices[product.name].weight.shape
        assert product.tokens == len(IDS) and len(values) == len(IDS) * inputs
        assert product.events == sum(value != 0 for value in values)
        assert product.units == sum(abs(value) for value in values)
        assert product.bit_spikes == sum(abs(value).bit_count() for value in values)
        assert product.clipped == sum(abs(value) >= 15 for value in values)
        assert product.ac == product.events * outputs and product.mac == 0
        read += product.ac
        total += len(IDS) * inputs * outputs
    assert result.activity == pytest.approx(read / total) and 0.05 < read / total < 0.95
    assert result.expanded("units") > result.expanded("bit_spikes") > result.total("ac")
    assert result.membrane_updates == (sum(layer.neurons for layer in result.neurons) if leak else 0)


def rebuilt(model, event):
    other = SpikeGPT(dataclasses.replace(model.config, event=event), backend="reference")
    other.load_state_dict(model.state_dict(), strict=False)
    return other.eval()


def test_the_canonical_model_saves_nothing_as_built():
    model, result = counted("after")
    weights = model.matrix_parameters()
    assert {product.kind for product in result.products} == {"float"}
    assert result.total("mac") == result.total("dense") == weights and result.total("ac") == 0
    assert result.activity == 1 and 0 < result.firing_rate < 1
    assert result.membrane_updates == 2 * 2 * 32
    assert "saving of 1.00x" in energy.answer(result, energy.accountings(result))


def test_the_papers_count_is_activity_that_no_matrix_sees():
    _, result = counted("after")
    dense, built, paper = energy.accountings(result)
    assert [row.name for row in (dense, built, paper)] == ["dense", "as built", "as the paper counts"]
    assert built.mac == dense.mac
    rate = {layer.name: layer.rate for layer in result.neurons}
    channels = 32
    att, ffn, head = 4 * channels**2, 9 * channels**2, 256 * channels
    expected = rate["emb_spike"] * att + rate["blocks.0.lif1"] * ffn + rate["blocks.0.lif2"] * att
    expected += rate["blocks.1.lif1"] * ffn + rate["blocks.1.lif2"] * head
    assert paper.ac == pytest.approx(expected)
    assert paper.mac == 2 * 6 * channels
    assert paper.energy(energy.TABLES[2])["total"] == pytest.approx(0.9 * paper.ac + 4.5 * paper.mac)


def test_energy_by_hand():
    work = operations.Operations(multiplications=10, additions=20, comparisons=5, exponentials=2, divisions=1)
    row = energy.Accounting("", "", ac=1000, mac=100, elementwise=work, weights=1100, floats=50)
    float32, int8, _ = energy.TABLES
    elementwise = 10 * 3.7 + 25 * 0.9 + 2 * 36.8 + 26.3
    assert row.energy(float32)["total"] == pytest.approx(1000 * 0.9 + 100 * 4.6 + elementwise)
    spent = row.energy(int8, "DRAM")
    assert spent["products"] == pytest.approx(1000 * 0.03 + 100 * 0.23)
    assert spent["memory"] == pytest.approx((1100 + 200) * 162.5)
    assert spent["total"] == pytest.approx(spent["products"] + elementwise + spent["memory"])


@pytest.mark.parametrize("spikes", SPIKES)
def test_chunks_change_nothing(spikes):
    _, whole = counted(spikes, chunk=100)
    _, parts = counted(spikes, chunk=7)
    assert whole.products == parts.products and whole.neurons == parts.neurons
    assert whole.tokens == len(IDS)


def test_an_event_expands_exactly_into_binary_spikes():
    """Over bit-planes (1, 2, 4, 8) and into unit spikes, a product of events is a sum of products of binary spikes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 64, 24, generator=generator) * 2
    events, _ = ops.event(x, torch.full((24,), 0.5), torch.full((24,), 0.25), backend="reference")
    events = events[0].to(torch.int64)
    assert set(range(1, 16)) <= set(events.abs().unique().tolist())
    weight = torch.randint(-127, 128, (24, 10), generator=generator)
    exact = events @ weight
    planes = [events.sign() * ((events.abs() >> bit) & 1) for bit in range(4)]
    steps = [events.sign() * (events.abs() > step) for step in range(15)]
    for spikes in (*planes, *steps):
        assert set(spikes.unique().tolist()) <= {-1, 0, 1}
    assert torch.equal(sum((plane @ weight) << bit for bit, plane in enumerate(planes)), exact)
    assert torch.equal(sum(step @ weight for step in steps), exact)
    product = only(nn.Linear(24, 10, bias=False), events.float())
    assert product.bit_spikes == sum(int(plane.count_nonzero()) for plane in planes)
    assert product.units == sum(int(step.count_nonzero()) for step in steps)


class Executed(TorchDispatchMode):
    """Counts the elements that each primitive operator makes."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "exp":
            self.counts["exp"] += int((args[0] != 0).sum())  # exp(0) is 1 and is not computed
        elif isinstance(out, torch.Tensor):
            self.counts[name] += out.numel()
        return out


def test_formulas_agree_with_what_the_operators_execute():
    channels, generator = 50, torch.Generator().manual_seed(1)
    k, v = (torch.randn(1, 1, channels, generator=generator) for _ in range(2))
    state = torch.rand(1, 3, channels, generator=generator)
    with torch.no_grad(), Executed() as executed:
        ops.wkv(-torch.ones(channels), torch.zeros(channels), k, v, state, backend="reference")
    assert executed.counts["mul"] == operations.WKV.multiplications * channels
    assert executed.counts["div"] == operations.WKV.divisions * channels
    assert executed.counts["exp"] == operations.WKV.exponentials * channels
    assert executed.counts["maximum"] == operations.WKV.comparisons * channels
    with torch.no_grad(), Executed() as executed:
        x = torch.lerp(v, k, state[:, :1])
        torch.sigmoid(x) * torch.square(torch.relu(x))
    assert executed.counts["sigmoid"] == executed.counts["relu"] == channels
    assert operations.SIGMOID.exponentials == operations.SQUARED_RELU.comparisons == 1


def test_elementwise_of_a_whole_model_by_hand():
    config = ModelConfig(vocab_size=11, n_layer=1, n_embd=4, spikes="before", event=EventConfig(leak=0.5))
    sites = {(site.name, site.kind): site.operations for site in operations.elementwise(config)}
    assert sites["blocks.0.att", "wkv"].exponentials == 8 and sites["blocks.0.att", "gate"].exponentials == 4
    assert sites["blocks.0.ffn", "squared relu"].multiplications == 16
    assert sites["blocks.0.ffn.neurons.key", "rescale"].multiplications == 16
    assert sites["head_neuron", "rescale"].multiplications == 11
    assert sites["head_neuron", "neuron"] == operations.Operations(8, 12, 12, 0, 0)
    jumps = ModelConfig(vocab_size=11, n_layer=1, n_embd=4, spikes="before", event=EventConfig(leak=0.5, smallest=2))
    more = {(site.name, site.kind): site.operations for site in operations.elementwise(jumps)}
    assert more["head_neuron", "neuron"] == operations.Operations(8, 12, 16, 0, 0)
    assert sites["blocks.0", "residual"].additions == 8
    assert sum(kind == "norm" for _, kind in sites) == 4
    vectors = 4 * 2 * 4 + 5 * 4 + 2 * 4  # norms, mixes with decay and first, mixes
    membranes = 4 * 4 + (4 + 4 + 16) + 4
    assert operations.floats_moved(config) == 4 + vectors + 2 * (4 + 12 + 4 + membranes)


def test_neurobench_counts_the_same():
    layers = pytest.importorskip("neurobench.metrics.utils.layers", exc_type=ImportError)
    for spikes, event in (("before", None), ("before", EventConfig(levels=1)), ("after", None)):
        model = make_model(spikes)
        model = rebuilt(model, event) if event else model
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("key.weight"):
                    parameter[parameter.abs() < 0.1] = 0
        sums = their_sums(layers, model)
        ours = profile(model, IDS).neurobench()
        for key, value in ours["SynapticOperations"].items():
            assert value * len(IDS) == sums[key], (spikes, key)
        assert 0 < ours["ConnectionSparsity"] < 1 and 0 < ours["ActivationSparsity"] < 1


def their_sums(layers, model):
    sums = Counter()
    matrices = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [m.register_forward_pre_hook(lambda m, args: sums.update(theirs(layers, m, args[0]))) for m in matrices]
    with torch.inference_mode():
        model(torch.from_numpy(IDS)[None])
    for handle in handles:
        handle.remove()
    return sums


def theirs(layers, matrix, x):
    plain = nn.Linear(matrix.in_features, matrix.out_features, bias=False)
    plain.weight.data = matrix.weight.detach().clone()
    effective, spiking = layers.single_layer_MACs(x[0], plain)
    dense, _ = layers.single_layer_MACs(x[0], plain, total=True)
    return {"Effective_ACs" if spiking else "Effective_MACs": effective, "Dense": dense}


def test_spikingjelly_counts_the_same_binary_spikes():
    counters = pytest.importorskip("spikingjelly.activation_based.op_counter", exc_type=ImportError)
    matrix = nn.Linear(30, 20, bias=False)
    spikes = (torch.rand(5, 30, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    counter = counters.SynOpCounter()
    with torch.no_grad(), counters.DispatchCounterMode([counter]):
        matrix(spikes)
    assert only(matrix, spikes).ac == counter.get_total() > 0


def test_the_engine_counts_what_the_float_model_counts():
    engine = pytest.importorskip("spikegpt.engine")
    if engine.run.MISSING:
        pytest.skip(f"the engine is not built: {engine.run.MISSING}")
    from spikegpt.engine.integers import IntegerModel

    packed = IntegerModel.of(make_model("before"), 8)
    by_hooks = profile(packed.dequantise(), IDS)
    by_engine = profile(engine.EventModel(packed, threads=1), IDS, chunk=13)
    names = {product.name: product for product in by_hooks.products}
    assert {product.name for product in by_engine.products} == set(names)
    for product in by_engine.products:
        other = names[product.name]
        assert (product.inputs, product.outputs, product.tokens) == (other.inputs, other.outputs, other.tokens)
        # Sums in another order may turn over a handful of events.
        for ours, reference in ((product.events, other.events), (product.units, other.units)):
            assert abs(ours - reference) <= 2 + 0.005 * reference, product.name
        assert product.bits == 8 and product.bit_spikes is None
    assert by_engine.activity == pytest.approx(by_hooks.activity, rel=0.005)
    assert [row.name for row in energy.accountings(by_engine)] == ["dense", "events", "events as MACs", "unit spikes"]


@pytest.fixture
def call(capsys):
    def run(*args):
        with pytest.raises(SystemExit) as stopped:
            main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


@pytest.fixture(params=SPIKES)
def saved(request, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    save_model(tmp_path / "model", make_model(request.param))
    return request.param, tmp_path


def test_the_command_prints_tables_and_json(call, saved):
    spikes, folder = saved
    common = ("profile", "--model", folder / "model", "--data", folder / "text.txt", "--tokens", 40)
    code, out, _ = call(*common)
    assert code == 0 and "Does the spiking save anything?" in out and "Left out" in out
    assert "saturated" in out and "blocks.1.ffn.receptance" in out  # no column is cut off where there is no terminal
    code, out, _ = call(*common, "--json")
    told = json.loads(out)
    assert code == 0 and told["tokens"] == 40 and len(told["products"]) == 15
    assert set(told["neurobench"]) == {
        "Footprint", "ConnectionSparsity", "ActivationSparsity", "SynapticOperations", "MembraneUpdates",
    }  # fmt: skip
    assert sum(product["dense"] for product in told["products"]) == told["total"]["dense"]
    assert (told["total"]["mac"] == 0) == (spikes == "before")
    assert told["energy"][0]["accounting"] == "dense" and told["energy"][0]["saving"] == 1
    code, _, err = call(*common, "--engine", "event")
    assert (code == 0) == (spikes == "before") or "not built" in err


def test_what_cannot_be_profiled(call, tmp_path):
    model = make_model("before")
    with pytest.raises(UsageError, match="above zero"):
        profile(model, IDS, tokens=0)
    with pytest.raises(UserError, match="no text"):
        profile(model, IDS[:0])
    (tmp_path / "text.txt").write_text(TEXT)
    code, _, err = call("profile", "--data", tmp_path / "text.txt", "--model", "tiny", "--engine", "quantum")
    assert code == 2 and "float, event" in err


def test_the_answer_says_no_where_every_event_expands_too_far():
    _, result = counted("before")
    assert isinstance(result, Profile)
    assert "Yes" in energy.answer(result, energy.accountings(result))
    loud = [
        dataclasses.replace(p, nonzero=p.tokens * p.inputs, units=15 * p.tokens * p.inputs) for p in result.products
    ]
    costly = dataclasses.replace(result, products=loud)
    assert energy.answer(costly, energy.accountings(costly)).startswith("No")

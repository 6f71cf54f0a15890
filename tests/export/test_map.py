"""A model on a chip: limits, counts, energy, and SANA-FE's opinion of the same trace."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from event_models import KINDS
from tiny import awake

from spikegpt import checkpoint
from spikegpt.cli import main
from spikegpt.config import ModelConfig
from spikegpt.engine import run
from spikegpt.engine.packed import read, unpack
from spikegpt.errors import UsageError, UserError
from spikegpt.export.mapping import CHIPS, Map, load_chip, map_model
from spikegpt.export.nir.write import trace
from spikegpt.loading import SHIPPED, load
from spikegpt.model.sites import sites
from spikegpt.profiling.counts import Product, profile
from spikegpt.tokenizer import ByteTokenizer

CHIP = """name = "mine"
cores = 4
core_bytes = 65536
core_neurons = 512
core_axons = 1024
weight_bits = 8
payload_bits = 5
source = "a data sheet"
"""


def product(**changes: object) -> Product:
    values = dict(
        name="head", kind="graded", inputs=256, outputs=512, bits=8, tokens=10, nonzero=100, units=300, bit_spikes=None,
        clipped=0, connected=None,
    )  # fmt: skip
    return Product(**(values | changes))


def on(chip: str, tmp_path: Path, *products: Product) -> Map:
    (tmp_path / "chip.toml").write_text(chip)
    config = ModelConfig(n_embd=256, vocab_size=512, n_layer=1, spikes="before")
    return map_model(config, products, load_chip(str(tmp_path / "chip.toml")))


def test_cores_messages_and_operations_of_one_matrix(tmp_path: Path) -> None:
    found = on(CHIP, tmp_path, product())
    (placed,) = found.placed
    assert placed.cores == 2 and placed.bytes == 256 * 512  # 256 outputs of 256 bytes fill a core
    assert (placed.events, placed.units, placed.spikes, placed.messages) == (10, 30, 10, 20)
    assert placed.synaptic_operations == 10 * 512
    assert found.fill == 1.0 and not found.problems and found.energy_uj is None
    assert found.payload_bits == 5
    binary = on(CHIP.replace("payload_bits = 5", "payload_bits = 0"), tmp_path, product())
    assert binary.placed[0].spikes == 30 and binary.placed[0].messages == 60
    costs = "energy_pj = { synapse = 1, update = 2, spike = 3, message = 4 }\n"
    energy = on(CHIP + costs, tmp_path, product()).energy_uj
    assert energy == pytest.approx((5120 * 1 + 512 * 2 + 10 * 3 + 20 * 4) / 1e6)


def test_a_model_that_does_not_fit_says_what_does_not(tmp_path: Path) -> None:
    small = CHIP.replace("cores = 4", "cores = 1").replace("payload_bits = 5", "payload_bits = 4")
    small = small.replace("core_axons = 1024", "core_axons = 255").replace("weight_bits = 8", "weight_bits = 4")
    problems = " | ".join(on(small, tmp_path, product()).problems)
    for part in (
        "2 cores are needed, mine has 1: 2 chips",
        "fan-in 256",
        "fan-out 512",
        "weights of 8 bits",
        "need 5 bits",
    ):
        assert part in problems
    tiny = CHIP.replace("core_bytes = 65536", "core_bytes = 100")
    assert any("one output do not fit" in problem for problem in on(tiny, tmp_path, product()).problems)


def test_bad_chip_files_are_refused_in_one_line(tmp_path: Path) -> None:
    for text, complaint in (
        (CHIP.replace("cores = 4\n", ""), "says no cores"),
        (CHIP.replace("cores = 4", 'cores = "4"'), "must be a whole number"),
        (CHIP.replace("cores = 4", "cores = 0"), "of at least 1"),
        (CHIP + "colour = 1\n", "unknown entries: colour"),
        (CHIP + "energy_pj = { synapse = 1 }\n", "must have synapse, update"),
        ("name =", "is no TOML"),
    ):
        with pytest.raises(UserError, match=complaint):
            on(text, tmp_path, product())
    with pytest.raises(UsageError, match="neither one of loihi1"):
        load_chip("loihi9")
    with pytest.raises(UsageError, match="stay on the host"):
        map_model(ModelConfig(), [product()], load_chip("loihi1"))
    assert all(load_chip(name).source for name in CHIPS)


@pytest.mark.skipif(run.MISSING is not None, reason="the engine is not built")
def test_counts_are_the_profiles_and_the_command_prints_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig.from_dict(KINDS["graded"].to_dict() | {"vocab_size": 256})
    model = awake(config)
    model.tokenizer = ByteTokenizer()
    checkpoint.save_model(tmp_path / "model", model)
    (tmp_path / "text.txt").write_text("It was a dark and stormy night. " * 4)

    def call(*more: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["map", str(tmp_path / "model"), "--data", str(tmp_path / "text.txt"), *more])
        assert stopped.value.code == 0
        return capsys.readouterr().out

    described = json.loads(call("--chip", "loihi2", "--json", "--plot", str(tmp_path / "map.png")))
    counted = profile(load(tmp_path / "model", engine="event"), [tmp_path / "text.txt"])
    per_token = described["per_token"]
    assert per_token["events"] == pytest.approx(sum(each.events for each in counted.products) / counted.tokens)
    assert per_token["synaptic_operations"] == pytest.approx(sum(each.ac for each in counted.products) / counted.tokens)
    assert described["host_bytes_in"] == 2 * sum(s.inputs for s in sites(config) if s.kind != "ffn.value")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    printed = " ".join(call("--chip", "loihi1").split())
    assert "it fits" in printed and "binary, an event of n sent as n spikes" in printed and "uJ a token" in printed


@pytest.mark.skipif(
    importlib.util.find_spec("sanafe") is None, reason="SANA-FE (GPL) is not installed: pip install sanafe"
)
def test_block_0_costs_what_sana_fe_says() -> None:
    import sanafe

    packed, tokenizer = read(SHIPPED)
    ids = tokenizer.encode("It was a dark and stormy night, and the ship lay at anchor in the bay.")
    seen, chip = trace(unpack(SHIPPED), ids), load_chip("loihi1")
    assert chip.energy_pj is not None
    theirs = ours = 0.0
    for site in (site for site in sites(packed.config) if site.block == 0):
        fired = seen[f"{site.neuron}/out"] != 0
        arch, net = sanafe.load_loihi(), sanafe.Network()
        source = net.create_neuron_group("in", site.inputs, soma_hw_name="loihi_inputs")
        sink = net.create_neuron_group(
            "out", site.outputs, model_attributes={"threshold": 1e12, "leak_decay": 0.0}, soma_hw_name="loihi_lif",
            default_synapse_hw_name="loihi_dense_synapse",
        )  # fmt: skip
        cores, per_core = arch.cores(), chip.core_bytes // site.inputs
        for i in range(site.inputs):
            spikes = {"spikes": fired[:, i].astype(int).tolist()}
            source.neurons[i].set_attributes(model_attributes=spikes, soma_hw_name=f"loihi_inputs[{i}]")
            source.neurons[i].map_to_core(cores[0])
        for o in range(site.outputs):
            sink.neurons[o].map_to_core(cores[1 + o // per_core])
        source.connect_neurons_dense(sink, {"weight": [1.0] * (site.inputs * site.outputs)})
        simulated = sanafe.SpikingChip(arch)
        simulated.load(net)
        energy = simulated.sim(len(ids))["energy"]
        theirs += energy["total"] if isinstance(energy, dict) else energy
        events = int(np.count_nonzero(fired))
        counted = product(
            name=site.name, inputs=site.inputs, outputs=site.outputs, tokens=len(ids), nonzero=events, units=events
        )
        placed = map_model(packed.config, [counted], chip).placed[0]
        assert placed.energy_uj is not None  # its inputs are made by no neuron, so `spike` is not in
        ours += sum(placed.energy_uj[cost] for cost in ("synapse", "update", "message")) * len(ids) / 1e6
    assert ours == pytest.approx(theirs, rel=0.01)

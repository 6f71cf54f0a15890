"""Exported NIR graphs in the simulators that are installed: 0 spikes and 0 sums wrong, and a wrong dialect is found."""

import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from event_models import KINDS
from places import SHARED
from tiny import awake

from spikegpt import checkpoint
from spikegpt.cli import main
from spikegpt.config import EventConfig, ModelConfig
from spikegpt.engine import EventModel, run
from spikegpt.engine.packed import read, unpack
from spikegpt.errors import UsageError, UserError
from spikegpt.export.nir.nodes import event_bounds, square_bounds
from spikegpt.export.nir.simulators import simulate
from spikegpt.export.nir.verify import read_graph, verify
from spikegpt.export.nir.write import export_nir
from spikegpt.loading import SHIPPED
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer, CharTokenizer

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("nir") is None, reason="pip install 'spikegpt[nir]'"),
    pytest.mark.filterwarnings("ignore"),
]
GOLDEN = SHARED / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs ../shared/golden, what the reference computes")


def needs(simulator: str):
    modules = [] if simulator == "reference" else [simulator, "nirtorch"]  # by way of which they read graphs
    missing = any(importlib.util.find_spec(module) is None for module in modules)
    return pytest.param(simulator, marks=pytest.mark.skipif(missing, reason=f"{simulator} is not installed"))


SIMULATORS = [needs(name) for name in ("reference", "norse", "snntorch", "spikingjelly", "sinabs")]


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def save(config: ModelConfig, directory: Path) -> Path:
    model = awake(config)
    model.tokenizer = ByteTokenizer()
    checkpoint.save_model(directory, model)
    return directory


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray]]:
    """Directories and tokens of the reference's models."""
    found = {}
    for name, kind in (("official-rwkv-3x64", "RWKV"), ("official-ffnpre-7x64", "RWKV-ffnPre")):
        weights = torch.load(GOLDEN / f"{name}.pth", weights_only=True)
        vocabulary, channels = weights["emb.weight"].shape
        layers = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks."))
        config = ModelConfig(n_layer=layers, n_embd=channels, vocab_size=vocabulary, architecture=kind)
        model = SpikeGPT(config)
        model.load_state_dict(weights)
        model.tokenizer = CharTokenizer([chr(33 + i) for i in range(vocabulary)])
        directory = tmp_path_factory.mktemp("golden") / name
        checkpoint.save_model(directory, model)
        found[name] = directory, np.load(GOLDEN / f"{name}.npz")["tokens"][0]
    return found


@needs_golden
@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("name", ["official-rwkv-3x64", "official-ffnpre-7x64"])
def test_the_references_spikes_in_every_simulator(golden, tmp_path: Path, name: str, simulator: str) -> None:
    directory, ids = golden[name]
    export_nir(directory, tmp_path / "out", dialect="exp" if simulator == "sinabs" else "euler", ids=ids)
    found = verify(tmp_path / "out", simulator)
    assert len(found) == (6 if "rwkv" in name else 14)
    assert sum(each.spikes_wrong for each in found) == 0
    assert sum(each.fired for each in found) > 1000


@needs_golden
@pytest.mark.parametrize(("dialect", "simulator"), [("unit", needs("norse")), ("exp", "reference")])
def test_a_wrong_dialect_is_found(golden, tmp_path: Path, dialect: str, simulator: object) -> None:
    name = simulator if isinstance(simulator, str) else "norse"
    if name == "norse" and importlib.util.find_spec("norse") is None:
        pytest.skip("norse is not installed")
    directory, ids = golden["official-rwkv-3x64"]
    export_nir(directory, tmp_path / "out", dialect=dialect, ids=ids)
    assert sum(each.spikes_wrong for each in verify(tmp_path / "out", name)) > 1000
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(tmp_path / "out"), "--simulator", name])
    assert stopped.value.code == 1


SMALL = ModelConfig(vocab_size=256, n_layer=1, n_embd=24, n_ffn=40, spikes="before", event=EventConfig())
EVENTS = {
    "graded": EventConfig(), "ternary": EventConfig(levels=1), "binary": EventConfig(levels=1, signed=False),
    "jumping": EventConfig(smallest=3), "shared": EventConfig(shared=True),
}  # fmt: skip


@pytest.mark.parametrize("kind", EVENTS)
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_event_neurons_and_sums_in_every_simulator(tmp_path: Path, kind: str, simulator: str) -> None:
    config = ModelConfig.from_dict(SMALL.to_dict() | {"event": EVENTS[kind].__dict__})
    dialect, uniform = ("exp" if simulator == "sinabs" else "euler"), simulator == "snntorch"
    export_nir(save(config, tmp_path / "model"), tmp_path / "out", dialect=dialect, uniform=uniform)
    if simulator == "spikingjelly":
        with pytest.raises(UserError, match="does not take this graph"):
            verify(tmp_path / "out", simulator)
        return
    found = verify(tmp_path / "out", simulator)
    assert len(found) == 7
    assert sum(each.spikes_wrong for each in found) == sum(each.sums_wrong for each in found) == 0
    assert sum(each.fired for each in found) > 100


@pytest.mark.parametrize("simulator", [needs("norse"), needs("snntorch"), needs("sinabs")])
def test_block_0_of_the_shipped_model(tmp_path: Path, simulator: str) -> None:
    dialect = "exp" if simulator == "sinabs" else "euler"
    export_nir(SHIPPED, tmp_path / "out", dialect=dialect, uniform=simulator == "snntorch", only="blocks.0.")
    found = verify(tmp_path / "out", simulator)
    assert [each.segment for each in found] == [
        *(f"blocks.0.att.{name}" for name in ("key", "value", "receptance", "output")),
        *(f"blocks.0.ffn.{name}" for name in ("key", "receptance")),
    ]  # fmt: skip
    assert sum(each.spikes_wrong for each in found) == sum(each.sums_wrong for each in found) == 0
    assert sum(each.fired for each in found) > 1000


@pytest.mark.skipif(run.MISSING is not None, reason="the engine is not built")
@pytest.mark.skipif(importlib.util.find_spec("norse") is None, reason="norse is not installed")
def test_the_whole_shipped_model_in_norse_gives_the_engines_logits(tmp_path: Path) -> None:
    """Every neuron and every matrix in the simulator, the rest by the host, for 64 tokens."""
    packed, tokenizer = read(SHIPPED)
    ids = np.asarray(tokenizer.encode("It was a dark and stormy night, and the ship lay at anchor in the bay. " * 8))[
        :64
    ]
    manifest = export_nir(SHIPPED, tmp_path / "out", ids=ids)
    scales = dict(np.load(tmp_path / "out/trace.npz"))
    inside = {segment["name"]: segment["matrices"] for segment in manifest["segments"]}
    assert sum(map(len, inside.values())) == 43 and manifest["host_share"] == 0
    model, computed = unpack(SHIPPED), {}
    for neuron in model.event_neurons():
        neuron.forward = lambda x, _=None: (x, None)  # the graph has it

    def by_simulator(name: str):
        def forward(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            sums = simulate("norse", read_graph(tmp_path / f"out/{name}.nir"), x[0].numpy(), manifest["dt"])
            computed[inside[name][-1]] = torch.from_numpy(sums)[None] * torch.from_numpy(scales[f"{name}/scale"])
            return torch.zeros(1, len(ids), model.config.hidden) if len(inside[name]) > 1 else computed[name]

        return forward

    for name, matrices in inside.items():
        model.get_submodule(name).forward = by_simulator(name)
        if len(matrices) > 1:
            model.get_submodule(matrices[1]).forward = lambda *_, key=matrices[1]: computed[key]
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    with torch.inference_mode():
        logits, _ = model(tokens)
    expected, _ = EventModel(packed, tokenizer)(tokens)
    assert (logits - expected).abs().max().item() == 0.0


def test_bounds_are_those_of_the_engines_arithmetic() -> None:
    rng = np.random.default_rng(0)
    threshold, unit = np.float32(0.7345), np.float32(0.1931)
    size = np.concatenate(
        [
            rng.random(20_000).astype(np.float32) * 4,
            *(event_bounds(0.7345, 0.1931, 15, 1).astype(np.float32) + d for d in (0, 1e-7, -1e-7)),
        ]
    )
    expected = np.minimum(np.ceil(np.maximum(size - threshold, np.float32(0)) / unit), 15)
    bounds = event_bounds(float(threshold), float(unit), 15, 1)
    assert np.array_equal((size[:, None] > bounds).sum(1), expected)
    scale = (rng.random(5).astype(np.float32) + np.float32(0.1)) / np.float32(100)
    sums = np.arange(-300, 600)
    current = np.maximum(sums[:, None].astype(np.float32) * scale, 0)
    expected = np.minimum(np.ceil(np.maximum(current * current - threshold, np.float32(0)) / unit), 15)
    found = square_bounds(scale, float(threshold), float(unit), 15, 1, 599)
    assert np.array_equal((sums[:, None, None] > found).sum(1), expected)


def test_older_nir_is_served_by_files_without_the_reset(tmp_path: Path) -> None:
    import h5py

    export_nir(save(SMALL, tmp_path / "model"), tmp_path / "new")
    export_nir(save(SMALL, tmp_path / "again"), tmp_path / "old", compat="1.0.4")
    names: dict[str, list[str]] = {"new": [], "old": []}
    for which in names:
        with h5py.File(tmp_path / which / "head.nir") as file:
            file.visit(names[which].append)
    assert sum(name.endswith("v_reset") for name in names["new"]) == 1
    assert [name for name in names["new"] if not name.endswith("v_reset")] == names["old"]
    assert sum(each.sums_wrong for each in verify(tmp_path / "old", "reference")) == 0


@pytest.mark.skipif("NIR_1_0_4" not in __import__("os").environ, reason="NIR_1_0_4 names no Python with nir 1.0.4")
def test_nir_1_0_4_reads_them(tmp_path: Path) -> None:
    export_nir(save(SMALL, tmp_path / "model"), tmp_path / "old", compat="1.0.4")
    code = f"import nir; print(len(nir.read({str(tmp_path / 'old/head.nir')!r}).nodes))"
    python = __import__("os").environ["NIR_1_0_4"]
    assert subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout == "6\n"


def test_what_cannot_be_expressed_or_read_is_refused_in_one_line(tmp_path: Path, capsys) -> None:
    for name, config, complaint in (
        ("hard", KINDS["hard reset"], "a leak behind them"),
        ("soft", KINDS["soft reset"], "a soft reset behind them"),
        ("none", ModelConfig(n_layer=1, n_embd=16, spikes="none"), "no neurons"),
    ):
        directory = save(ModelConfig.from_dict(config.to_dict() | {"vocab_size": 256}), tmp_path / name)
        with pytest.raises(SystemExit) as stopped:
            main(["export", "nir", str(directory), str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and complaint in error and error.count("\n") == 1
    good = save(SMALL, tmp_path / "good")
    with pytest.raises(UsageError, match="already exists"):
        export_nir(good, tmp_path)
    with pytest.raises(UsageError, match="dialect 'x' is not one of euler"):
        export_nir(good, tmp_path / "out", dialect="x")
    with pytest.raises(UsageError, match="no segment"):
        export_nir(good, tmp_path / "out", only="x")
    assert not (tmp_path / "out").exists()
    export_nir(good, tmp_path / "out")
    with pytest.raises(UsageError, match="no simulator 'x'"):
        verify(tmp_path / "out", "x")
    path = tmp_path / "out/manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"version": 2}))
    with pytest.raises(UserError, match="version 2, this spikegpt reads 1"):
        verify(tmp_path / "out", "reference")
    path.write_text(json.dumps(manifest | {"segments": [{"name": "../x"}]}))
    with pytest.raises(UserError, match="no file's name"):
        verify(tmp_path / "out", "reference")
    with pytest.raises(UserError, match="is no directory of"):
        verify(good, "reference")


def test_a_missing_simulator_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_nir(save(SMALL, tmp_path / "model"), tmp_path / "out", only="head")
    monkeypatch.setitem(sys.modules, "norse", None)
    with pytest.raises(UserError, match="norse is not installed .*pip install"):
        verify(tmp_path / "out", "norse")

"""Packed models on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from event_models import KINDS, text
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny import awake

from spikegpt import checkpoint
from spikegpt.cli import main
from spikegpt.config import EventConfig, ModelConfig
from spikegpt.convert import convert
from spikegpt.engine import EventModel, pack, run
from spikegpt.engine.integers import GROUP, IntegerModel
from spikegpt.engine.packed import PACKED, read
from spikegpt.errors import UsageError, UserError
from spikegpt.loading import load
from spikegpt.model.layers import Linear
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer


def make(spikes: str = "before") -> SpikeGPT:
    torch.manual_seed(0)
    event = EventConfig() if spikes == "before" else None
    model = SpikeGPT(ModelConfig(vocab_size=256, n_layer=2, n_embd=160, spikes=spikes, event=event))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Linear):
                module.weight.normal_(0, module.in_features**-0.5)
        model.emb.weight.normal_()
    model.tokenizer = ByteTokenizer()
    return model.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save_model(tmp_path / "model", make())
    return tmp_path / "model"


@pytest.mark.parametrize(("bits", "steps"), [(8, 127), (4, 7)])
def test_weights_are_rounded_to_the_nearest_step(bits: int, steps: int) -> None:
    model = make()
    packed = IntegerModel.of(model, bits)
    again = packed.dequantise().state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.ndim != 2 or "mix" in name:
            assert torch.equal(again[name], tensor), name
            continue
        largest = tensor.abs().amax(1, keepdim=True)
        worst = (again[name] - tensor).abs()
        if bits == 8 or name == "emb.weight":
            assert (worst <= largest / 127 / 2 * 1.001).all(), name
        else:
            # 4 bits have a scale for each group of inputs, and may clip the largest.
            assert worst.square().mean().sqrt() < tensor.std() / steps, name
    stored = packed.arrays["blocks.0.ffn.value.weight"]
    assert stored.dtype == (np.int8 if bits == 8 else np.uint8)
    assert len(stored) == 640  # one row an input
    assert packed.arrays["blocks.0.ffn.value.scale"].shape == ((1 if bits == 8 else 640 // GROUP), 160)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("shared")])
@torch.inference_mode()
def test_key_value_and_receptance_apart_are_the_same_model(kind: str, bits: int) -> None:
    packed = IntegerModel.of(awake(KINDS[kind]), bits)
    apart = packed.apart()
    assert apart.config.event is not None and not apart.config.event.shared and apart.apart() is apart
    last = f"blocks.{packed.config.n_layer - 1}.att"
    key, value, receptance = packed.dequantise().state_dict()[f"{last}.input.weight"].chunk(3)
    found = apart.dequantise().state_dict()
    for name, expected in (("key", key), ("value", value), ("receptance", receptance)):
        assert torch.equal(found[f"{last}.{name}.weight"], expected), name
    if run.MISSING is None:
        ids = text(packed.config, 40)
        with (whole := EventModel(packed)).meter() as meter, (three := EventModel(apart)).meter() as of_three:
            assert torch.equal(whole(ids)[0], three(ids)[0])
        assert meter.activity == of_three.activity > 0


def test_an_input_starts_as_key_value_and_receptance_do() -> None:
    model = SpikeGPT(ModelConfig(vocab_size=64, n_layer=1, n_embd=32, spikes="before", event=EventConfig(shared=True)))
    key, value, receptance = model.get_parameter("blocks.0.att.input.weight").detach().chunk(3)
    assert not key.any() and not receptance.any()
    assert torch.allclose(value @ value.T, torch.eye(32), atol=1e-5)


def test_zero_matrices_stay_zero() -> None:
    model = make()
    with torch.no_grad():
        model.head.weight.zero_()
    for bits in (8, 4):
        assert not IntegerModel.of(model, bits).dequantise().head.weight.any()


@pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}")
@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_directory_runs_as_the_model_in_memory(saved: Path, bits: int) -> None:
    out = pack(saved, bits=bits)
    assert out == saved.with_name(f"model-{bits}bit")
    assert sorted(path.name for path in out.iterdir()) == ["config.json", PACKED, "tokenizer.json"]
    engine = EventModel.load(out)
    ids = torch.randint(256, (1, 20))
    assert torch.equal(engine(ids)[0], EventModel.of(make(), bits=bits)(ids)[0])
    assert engine.tokenizer is not None
    assert engine.bits == bits
    small, large = (out / PACKED).stat().st_size, (saved / "model.safetensors").stat().st_size
    assert small < large * (0.28 if bits == 8 else 0.19)


@pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}")
def test_a_float_directory_is_packed_in_memory(saved: Path) -> None:
    ids = torch.randint(256, (1, 5))
    assert torch.equal(EventModel.load(saved)(ids)[0], EventModel.of(make())(ids)[0])


@pytest.mark.parametrize("spikes", ["after", "none"])
def test_other_models_are_told_what_to_do(tmp_path: Path, spikes: str) -> None:
    checkpoint.save_model(tmp_path / "model", make(spikes))
    with pytest.raises(UsageError, match="--spikes before, or .* `spikegpt spikify`"):
        pack(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_nothing_is_overwritten_unasked(saved: Path, tmp_path: Path) -> None:
    out = pack(saved)
    with pytest.raises(UsageError, match="already exists"):
        pack(saved)
    assert pack(saved, bits=4, out=out, force=True) == out
    assert read(out)[0].bits == 4
    with pytest.raises(UsageError, match="is packed already"):
        pack(out)
    with pytest.raises(UsageError, match="packed for the engine"):
        convert(out, tmp_path / "half", dtype="float16")
    assert (out / PACKED).stat().st_mode == (out / "config.json").stat().st_mode
    with pytest.raises(UsageError, match="something else"):
        pack(saved, out=saved, force=True)
    with pytest.raises(UsageError, match="bits=3"):
        pack(saved, out=tmp_path / "other", bits=3)


def rewrite(path: Path, **metadata: str) -> None:
    with safe_open(path, "numpy") as file:
        old = file.metadata()
    save_file(load_file(path), path, {**old, **metadata})


def test_damage_is_found(saved: Path) -> None:
    out = pack(saved)
    path = out / PACKED
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(UserError, match="truncated"):
        read(out)
    path.write_bytes(b"not a model")
    with pytest.raises(UserError, match="truncated or not a packed model"):
        read(out)
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(UserError, match="checksum"):
        read(out)
    path.write_bytes(whole)
    rewrite(path, packed="2")
    with pytest.raises(UserError, match="version 2, this spikegpt reads 1"):
        read(out)
    path.unlink()
    with pytest.raises(UserError, match="no packed.safetensors"):
        read(out)


def test_another_models_config_is_found(saved: Path) -> None:
    out = pack(saved)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"n_embd": 128}))
    with pytest.raises(
        UserError, match=r"does not fit its config: array emb\.weight has shape \[256, 160\], not \[256, 128\]"
    ):
        EventModel.load(out)


@pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}")
def test_load_takes_packed_directories(saved: Path) -> None:
    out = pack(saved)
    ids = torch.randint(256, (1, 6))
    engine = load(out)
    assert isinstance(engine, EventModel)
    with torch.inference_mode():
        float_model = load(out, engine="float")
        assert torch.allclose(float_model(ids)[0], engine(ids)[0], atol=1e-4)
    assert isinstance(float_model, SpikeGPT)
    assert float_model.tokenizer is not None
    assert isinstance(load(saved, engine="event"), EventModel)
    assert isinstance(load(saved), SpikeGPT)
    with pytest.raises(UsageError, match="'int' is not one of auto, float, event"):
        load(saved, engine="int")
    with pytest.raises(UsageError, match="not event-driven"):
        load("tiny", engine="event")


@pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}")
def test_without_the_engine_a_packed_model_runs_in_floats(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = pack(saved)
    monkeypatch.setattr(run, "MISSING", "no compiler")
    model = load(out)
    assert isinstance(model, SpikeGPT) and model.config.spikes == "before"


def test_the_command_line_packs_and_generates(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*args: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(arg) for arg in args])
        return stopped.value.code, *capsys.readouterr()

    out = saved.with_name("model-8bit")
    assert call("pack", saved)[:2] == (0, f"{out}\n")
    settings = ["--seed", 1, "-n", 8, "Once"]
    code, written, _ = call("generate", "-m", out, *settings)
    assert code == 0 and written
    assert call("generate", "-m", saved, "--engine", "event", *settings)[1] == written
    code, _, error = call("pack", saved)
    assert code == 2 and "already exists" in error

"""Weights in and out: what comes back is what went in, and whatever cannot be converted is refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import random_weights
from places import DATA, SHARED
from torch import Tensor

from spikegpt import hub
from spikegpt.checkpoint import load_model, save_model
from spikegpt.cli import main
from spikegpt.config import ModelConfig
from spikegpt.convert import convert
from spikegpt.errors import UsageError, UserError
from spikegpt.generation.decode import generate
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer

CONFIG = ModelConfig(n_layer=3, n_embd=16, vocab_size=256)
NEOX = SHARED / "data" / "tokenizers" / "20B_tokenizer.json"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return random_weights(CONFIG)


@pytest.fixture
def source(weights: dict[str, Tensor], tmp_path: Path) -> Path:
    torch.save(weights, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def save(weights: Any, path: Path) -> Path:
    torch.save(weights, path)
    return path


def characters(count: int, path: Path) -> Path:
    path.write_text(json.dumps({str(i): chr(0x4E00 + i) for i in range(count)}), "utf-16")
    return path


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in expected.items()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["RWKV", "RWKV-ffnPre"])
def test_there_and_back_is_the_same_file(tmp_path: Path, dtype: torch.dtype, architecture: str) -> None:
    config = ModelConfig(n_layer=3, n_embd=16, vocab_size=256, architecture=architecture)  # type: ignore[arg-type]
    weights = {name: tensor.to(dtype) for name, tensor in random_weights(config).items()}
    done = convert(save(weights, tmp_path / "a.pth"), tmp_path / "model")
    assert done.config == config
    convert(tmp_path / "model", tmp_path / "b.pth")
    assert same(torch.load(tmp_path / "b.pth", weights_only=True), weights)
    model = load_model(tmp_path / "model")
    assert same(model.state_dict(), {name: tensor.float() for name, tensor in weights.items()})


def test_a_file_before_pytorch_1_6_is_read(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    convert(tmp_path / "old.pth", tmp_path / "model")
    assert same(load_model(tmp_path / "model").state_dict(), weights)


def test_rwkv_cpps_format_there_and_back(weights: dict[str, Tensor], tmp_path: Path) -> None:
    convert(save(weights, tmp_path / "a.pth"), tmp_path / "model", kind="rwkv4")
    convert(tmp_path / "model", tmp_path / "b.bin")
    done = convert(tmp_path / "b.bin", tmp_path / "again")
    assert done.config == load_model(tmp_path / "model").config
    assert done.assumed is None
    for name, tensor in load_model(tmp_path / "again").state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["official-rwkv-3x64", "official-ffnpre-7x64"])
@torch.no_grad()
def test_a_published_checkpoint_gives_the_references_logits(name: str, tmp_path: Path) -> None:
    folder = next((f / "golden" for f in (DATA, SHARED) if (f / "golden" / f"{name}.pth").is_file()), None)
    if folder is None:
        pytest.skip(f"needs {name}, which is not part of the repository")
    tokenizer = "bytes" if "rwkv" in name else str(characters(77, tmp_path / "vocab.json"))
    convert(folder / f"{name}.pth", tmp_path / "model", tokenizer=tokenizer)
    model = load_model(tmp_path / "model")
    with np.load(folder / f"{name}.npz") as golden:
        expected = torch.from_numpy(golden["logits"])
        found, _ = model(torch.from_numpy(golden["tokens"]))
    assert (found - expected).norm() / expected.norm() < 1e-4
    convert(tmp_path / "model", tmp_path / "back.pth")
    original = torch.load(folder / f"{name}.pth", weights_only=True)
    assert same(torch.load(tmp_path / "back.pth", weights_only=True), original)


def test_what_weights_do_not_say_has_a_default_that_is_told(weights: dict[str, Tensor], tmp_path: Path) -> None:
    spiking = convert(save(weights, tmp_path / "SpikeGPT.pth"), tmp_path / "a")
    assert (spiking.config.spikes, spiking.config.spike_embedding) == ("after", True)
    assert "--kind rwkv4" in (spiking.assumed or "")
    plain = convert(save(weights, tmp_path / "RWKV-4-Pile-169M.pth"), tmp_path / "b")
    assert (plain.config.spikes, plain.config.spike_embedding) == ("none", False)
    assert "--kind spikegpt" in (plain.assumed or "")
    told = convert(tmp_path / "SpikeGPT.pth", tmp_path / "c", kind="spikegpt", spike_embedding=False)
    assert (told.config.spikes, told.config.spike_embedding, told.assumed) == ("after", False, None)


def test_a_model_is_rounded_to_half_its_size(source: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    convert(source, tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "half", dtype="float16")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("model", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert same(load_model(tmp_path / "half").state_dict(), {name: w.half().float() for name, w in weights.items()})
    with pytest.raises(UsageError, match="float32, float16, bfloat16"):
        convert(tmp_path / "model", tmp_path / "int", dtype="int8")
    with pytest.raises(UsageError, match="convert without --dtype first"):
        convert(source, tmp_path / "other", dtype="float16")


def test_a_converted_model_generates(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert next(model.parameters()).dtype == torch.float32
    writing = generate(model, "Once", max_tokens=8, seed=1)
    assert "".join(writing) == writing.text
    assert writing.tokens == 8


def test_a_converted_model_is_ready_for_the_hub(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {*hub.FILES}
    assert (tmp_path / "model" / hub.CARD).read_text().count('from_pretrained("model")') == 2
    assert "auto_map" in json.loads((tmp_path / "model" / "config.json").read_text())


class TestTokenizers:
    def test_characters_in_utf_16(self, tmp_path: Path) -> None:
        config = ModelConfig(n_layer=1, n_embd=8, vocab_size=77)
        weights = save(random_weights(config), tmp_path / "w.pth")
        convert(weights, tmp_path / "model", tokenizer=str(characters(77, tmp_path / "vocab.json")))
        tokenizer = load_model(tmp_path / "model").tokenizer
        assert isinstance(tokenizer, CharTokenizer)
        assert tokenizer.encode("\u4e00\u4e4c").tolist() == [0, 76]

    @pytest.mark.skipif(not NEOX.is_file(), reason="needs ../shared/data/tokenizers/20B_tokenizer.json")
    def test_gpt_neox(self, tmp_path: Path) -> None:
        config = ModelConfig(n_layer=1, n_embd=4, vocab_size=50277)
        weights = save(random_weights(config), tmp_path / "w.pth")
        with pytest.raises(UsageError, match=r"50277 tokens: .*--tokenizer 20B_tokenizer.json"):
            convert(weights, tmp_path / "model")
        convert(weights, tmp_path / "model", tokenizer=str(NEOX))
        tokenizer = load_model(tmp_path / "model").tokenizer
        assert isinstance(tokenizer, BPETokenizer)
        assert tokenizer.encode("\n").tolist() == [187]

    def test_another_vocabulary_is_refused(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="77 tokens, the weights 256"):
            convert(source, tmp_path / "model", tokenizer=str(characters(77, tmp_path / "vocab.json")))
        weights = save(random_weights(ModelConfig(n_layer=1, n_embd=8, vocab_size=77)), tmp_path / "w.pth")
        with pytest.raises(UserError, match="256 tokens, the weights 77"):
            convert(weights, tmp_path / "model", tokenizer="bytes")
        assert not (tmp_path / "model").exists()

    @pytest.mark.parametrize("content", [b"\xff\xfe{\x00", b"{}", b"[1]", b"\x00\x01", b""])
    def test_a_file_that_is_none_is_refused(self, source: Path, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "vocab.json").write_bytes(content)
        with pytest.raises(UserError, match=r"vocab\.json"):
            convert(source, tmp_path / "model", tokenizer=str(tmp_path / "vocab.json"))


class Creates:
    """A pickle that makes a file when it is loaded by those who trust it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_nothing_in_a_pickle_is_executed(
    weights: dict[str, Tensor], tmp_path: Path, write: Callable[[Any, Path], Any]
) -> None:
    trap = tmp_path / "trap"
    write(weights | {"more": Creates(trap)}, tmp_path / "hostile.pth")
    pickle.loads(pickle.dumps(Creates(trap)))
    assert trap.exists()
    trap.unlink()
    with pytest.raises(UserError, match="was not opened"):
        convert(tmp_path / "hostile.pth", tmp_path / "model")
    assert not trap.exists()
    assert not (tmp_path / "model").exists()


def rwkv_cpp(*fields: int, rest: bytes = b"") -> bytes:
    return struct.pack(f"<{len(fields)}i", *fields) + rest


HEADER = (0x67676D66, 101, 256, 16, 3, 0)
FOREIGN = {
    "empty": b"",
    "text": b"It was a dark and stormy night.\n" * 20,
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "zip": b"PK\x03\x04" + bytes(100),
    "noise": np.random.default_rng(0).bytes(4096),
    "rwkv.cpp, header cut": rwkv_cpp(HEADER[0], 101),
    "rwkv.cpp, no tensors": rwkv_cpp(*HEADER),
    "rwkv.cpp, newer": rwkv_cpp(HEADER[0], 200, *HEADER[2:]),
    "rwkv.cpp, huge name": rwkv_cpp(*HEADER, 2, 2**31 - 1, 0),
    "rwkv.cpp, huge tensor": rwkv_cpp(*HEADER, 2, 10, 0, 2**31 - 1, 2**31 - 1, rest=b"emb.weight"),
    "rwkv.cpp, negative size": rwkv_cpp(*HEADER, 2, 10, 0, -16, -256, rest=b"emb.weight"),
    "rwkv.cpp, quantised": rwkv_cpp(*HEADER, 2, 10, 2, 16, 256, rest=b"emb.weight" + bytes(2048)),
    "rwkv.cpp, name no text": rwkv_cpp(*HEADER, 1, 2, 0, 1, rest=b"\xff\xfe" + bytes(4)),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_gets_one_line(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "foreign.pth").write_bytes(content)
    with pytest.raises(SystemExit) as exit:
        main(["convert", str(tmp_path / "foreign.pth"), str(tmp_path / "model")])
    error = capsys.readouterr().err
    assert exit.value.code == 1
    assert "foreign.pth" in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == ["foreign.pth"]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("form", ["weights.pth", "weights.bin"])
def test_a_file_cut_short_is_refused(
    weights: dict[str, Tensor], source: Path, tmp_path: Path, share: float, form: str
) -> None:
    if form == "weights.bin":
        convert(source, tmp_path / "whole", kind="rwkv4")
        convert(tmp_path / "whole", tmp_path / form)
    content = (tmp_path / form).read_bytes()
    (tmp_path / form).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"weights\."):
        convert(tmp_path / form, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def without(*names: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if not name.startswith(names)}


def with_(**values: Any) -> Callable[[dict[str, Tensor]], Any]:
    return lambda weights: weights | {name.replace("__", "."): value for name, value in values.items()}


WRONG = {
    "one missing": (without("blocks.1.att.key"), r"lacks 1 \(blocks.1.att.key.weight\) of the 60 tensors"),
    "many missing": (without("blocks.1."), r"lacks 18 \(blocks.1.ln1.weight, .*, .*, \.\.\.\) of the 60"),
    "no embedding": (without("emb"), "no matrix emb.weight"),
    "none at all": (without(""), "holds no state dict"),
    "unknown": (with_(blocks__1__att__gate=torch.ones(16)), r"has 1 \(blocks.1.att.gate\)"),
    "a later RWKV": (with_(blocks__0__att__ln_x__weight=torch.ones(16)), "later RWKV than version 4"),
    "head": (with_(head__weight=torch.ones(77, 16)), r"contradicts itself: head.weight is \[77, 16\]"),
    "decay": (with_(blocks__2__att__time_decay=torch.ones(8)), r"blocks.2.att.time_decay is \[8\], not \[16\]"),
    "transposed": (with_(blocks__1__ffn__key__weight=torch.ones(16, 64)), r"blocks.1.ffn.key.weight is \[16, 64\]"),
    "integers": (with_(ln_out__weight=torch.ones(16, dtype=torch.int64)), "ln_out.weight is of type torch.int64"),
    "no tensor": (with_(epoch=3), "'epoch' is int, not a tensor"),
    "a list": (lambda weights: list(weights.values()), "holds no state dict but list"),
    "a far block": (with_(blocks__9__ln1__weight=torch.ones(16)), "lacks"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_weights_that_do_not_fit_are_named(
    weights: dict[str, Tensor], tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    path = save(change(weights), tmp_path / "w.pth")
    with pytest.raises(UserError, match=message) as error:
        convert(path, tmp_path / "model")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


class TestDestinations:
    def test_one_that_exists_needs_force(self, source: Path, tmp_path: Path) -> None:
        convert(source, tmp_path / "model")
        with pytest.raises(UsageError, match="already exists"):
            convert(source, tmp_path / "model", kind="rwkv4")
        assert load_model(tmp_path / "model").config.spikes == "after"
        convert(source, tmp_path / "model", kind="rwkv4", force=True)
        assert load_model(tmp_path / "model").config.spikes == "none"

    def test_a_file_that_exists_needs_force(self, source: Path, tmp_path: Path) -> None:
        convert(source, tmp_path / "model")
        (tmp_path / "out.pth").write_bytes(b"precious")
        with pytest.raises(UsageError, match="already exists"):
            convert(tmp_path / "model", tmp_path / "out.pth")
        assert (tmp_path / "out.pth").read_bytes() == b"precious"
        convert(tmp_path / "model", tmp_path / "out.pth", force=True)
        assert "emb.weight" in torch.load(tmp_path / "out.pth", weights_only=True)

    def test_other_things_are_never_replaced(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.txt").write_text("years")
        with pytest.raises(UsageError, match=r"thesis\.txt"):
            convert(source, tmp_path / "home", force=True)

    def test_the_source_is_never_replaced(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="onto itself"):
            convert(source, source, force=True)
        convert(source, tmp_path / "model")
        with pytest.raises(UsageError, match="onto itself"):
            convert(tmp_path / "model", tmp_path / "model", force=True)

    @pytest.mark.parametrize("back", [False, True])
    def test_a_full_disk_leaves_nothing(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
    ) -> None:
        convert(source, tmp_path / "model", kind="rwkv4")
        before = sorted(os.listdir(tmp_path))

        def full(*arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("spikegpt.convert.stored.Stored.write", full)
        monkeypatch.setattr("spikegpt.convert.rwkvcpp.as_bytes", full)
        with pytest.raises(UserError, match="No space left"):
            convert(*((tmp_path / "model", tmp_path / "new.bin") if back else (source, tmp_path / "new")))
        assert sorted(os.listdir(tmp_path)) == before

    def test_names_say_what_is_made(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="becomes a model directory first"):
            convert(source, tmp_path / "other.bin")
        convert(source, tmp_path / "model")
        with pytest.raises(UsageError, match=r"name it \.pth"):
            convert(tmp_path / "model", tmp_path / "elsewhere")

    def test_no_source(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="there is no"):
            convert(tmp_path / "nothing.pth", tmp_path / "model")


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({"spikes": "before"}, "a.pth", "event-driven"),
        ({"tau": 3.0}, "a.pth", "no such neurons"),
        ({"spike_embedding": False}, "a.pth", "no such neurons"),
        ({"n_ffn": 8}, "a.pth", "hidden layer of 8"),
        ({"spikes": "after"}, "a.bin", "not a plain RWKV-4"),
        ({"spikes": "none", "architecture": "RWKV-ffnPre"}, "a.bin", "not a plain RWKV-4"),
    ],
)
def test_what_others_cannot_compute_is_not_exported(
    settings: dict[str, Any], name: str, message: str, tmp_path: Path
) -> None:
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=8, **settings))
    save_model(tmp_path / "model", model, ByteTokenizer())
    with pytest.raises(UsageError, match=message):
        convert(tmp_path / "model", tmp_path / name)
    assert not (tmp_path / name).exists()


def test_options_about_a_directory_of_ours_are_refused(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "model")
    with pytest.raises(UsageError, match="describes its own weights"):
        convert(tmp_path / "model", tmp_path / "a.pth", kind="rwkv4")


def test_an_unknown_kind_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'rwkv5' is not one of spikegpt, rwkv4"):
        convert(source, tmp_path / "model", kind="rwkv5")


_MEASURE = """
import json, sys
from spikegpt.convert import convert

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

for source, destination, options in json.load(sys.stdin):
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    convert(source, destination, **options)
    print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_memory_stays_near_the_largest_tensor(source: Path, tmp_path: Path) -> None:
    config = ModelConfig(n_layer=4, n_embd=448, vocab_size=8192)
    weights = random_weights(config)
    largest = max(tensor.numel() * 4 for tensor in weights.values())
    size = save(weights, tmp_path / "big.pth").stat().st_size
    options = {"tokenizer": str(characters(8192, tmp_path / "vocab.json")), "kind": "rwkv4"}
    conversions = [
        (source, "small", {"kind": "rwkv4"}),  # the first loads code, the others are measured
        ("big.pth", "big", options),
        ("big", "back.pth", {}),
        ("big", "big.bin", {}),
        ("big.bin", "again", options),
    ]
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE], cwd=tmp_path, input=json.dumps(conversions, default=str),
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    for (start, end, _), peak in zip(conversions[1:], run.stdout.split()[1:], strict=True):
        assert int(peak) < 1.3 * largest + size, f"{start} to {end}"

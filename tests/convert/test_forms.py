"""Weights in the forms in which people have them: wrapped, split over files, transformers', rounded up, or hostile."""

from __future__ import annotations

import json
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import random_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from spikegpt.checkpoint import has_weights, load_model, save_model
from spikegpt.cli import main
from spikegpt.config import ModelConfig
from spikegpt.convert import convert
from spikegpt.engine import EventModel
from spikegpt.engine.run import MISSING
from spikegpt.errors import UsageError, UserError
from spikegpt.generation.decode import generate, generate_batch
from spikegpt.loading import load
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer

CONFIG = ModelConfig(n_layer=2, n_embd=16, vocab_size=256)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return random_weights(CONFIG)


def save(weights: Any, path: Path) -> Path:
    torch.save(weights, path)
    return path


def split(weights: dict[str, Tensor], directory: Path, stem: str, suffix: str, save_as: Any) -> None:
    """Two files and their index, as transformers writes them."""
    directory.mkdir(exist_ok=True)
    names = sorted(weights)
    where = {name: f"{stem}-0000{1 + (i % 2)}-of-00002{suffix}" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_as({name: weights[name].clone() for name in names if where[name] == file}, directory / file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (directory / f"{stem}{suffix}.index.json").write_text(json.dumps(index))


class TestWrapped:
    @pytest.mark.parametrize(
        "prefix",
        [
            "module.",
            "_orig_mod.",
            "_forward_module.",
            "model.",
            "_orig_mod.module.",
            "module._orig_mod.",
            "_fsdp_wrapped_module.",
        ],
    )
    def test_prefixes_are_left_out(self, weights: dict[str, Tensor], tmp_path: Path, prefix: str) -> None:
        path = save({prefix + name: tensor for name, tensor in weights.items()}, tmp_path / "w.pth")
        convert(path, tmp_path / "model", kind="spikegpt")
        found = load_file(tmp_path / "model" / "model.safetensors")
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())

    def test_and_inside_names_too(self, weights: dict[str, Tensor], tmp_path: Path) -> None:
        inner = {name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."): t for name, t in weights.items()}
        assert convert(save(inner, tmp_path / "w.pth"), tmp_path / "model").config.n_layer == 2

    def test_two_models_in_one_file_are_refused(self, weights: dict[str, Tensor], tmp_path: Path) -> None:
        both = weights | {f"module.{name}": tensor for name, tensor in weights.items()}
        with pytest.raises(UserError, match=r"has emb.weight more than once, one of them as emb.weight"):
            convert(save(both, tmp_path / "w.pth"), tmp_path / "model")

    def test_a_trainers_checkpoint_says_what_to_save(self, weights: dict[str, Tensor], tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"'state_dict' is dict, not a tensor; save model.state_dict\(\) alone"):
            convert(save({"state_dict": weights, "epoch": 3}, tmp_path / "w.ckpt"), tmp_path / "model")


class TestSplit:
    @pytest.fixture
    def directory(self, weights: dict[str, Tensor], tmp_path: Path) -> Path:
        model = SpikeGPT(CONFIG)
        model.load_state_dict(weights)
        save_model(tmp_path / "whole", model, ByteTokenizer())
        split(weights, tmp_path / "split", "model", ".safetensors", save_file)
        for name in ("config.json", "tokenizer.json"):
            (tmp_path / "split" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
        return tmp_path / "split"

    def test_a_directory_of_shards_is_a_model(
        self, weights: dict[str, Tensor], directory: Path, tmp_path: Path
    ) -> None:
        assert has_weights(directory)
        found = load(directory).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
        convert(directory, tmp_path / "back.pth")
        back = torch.load(tmp_path / "back.pth", weights_only=True)
        assert back.keys() == weights.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())

    def test_it_is_replaced_as_a_whole(self, directory: Path) -> None:
        save_model(directory, SpikeGPT(CONFIG), ByteTokenizer(), force=True)
        assert sorted(path.name for path in directory.iterdir()) == [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
        ]

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ({}, "does not say which files"),
            ({"weight_map": {}}, "does not say which files"),
            ({"weight_map": [1]}, "does not say which files"),
            ({"weight_map": {"emb.weight": "../whole/model.safetensors"}}, "does not say which files beside it"),
            ({"weight_map": {"emb.weight": "/etc/passwd"}}, "does not say which files beside it"),
            ({"weight_map": {"emb.weight": 1}}, "does not say which files beside it"),
            ({"weight_map": {"emb.weight": "gone.safetensors"}}, r"lacks 1 of the 1 files of its weights \(gone"),
            ({"weight_map": {"emb.weight": "model-00001-of-00002.safetensors"}}, r"lacks \d+ tensor"),
        ],
    )
    def test_an_index_that_is_none(self, directory: Path, index: Any, message: str) -> None:
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match=message):
            load_model(directory)

    def test_a_tensor_in_two_files_is_refused(self, directory: Path) -> None:
        first, second = sorted(directory.glob("model-*.safetensors"))
        save_file({**load_file(first), **load_file(second)}, second)
        with pytest.raises(UserError, match="in two files"):
            load_model(directory)


class TestTransformers:
    """RwkvForCausalLM's names and files; the logits are compared where transformers is installed."""

    OURS = (
        ("emb", "rwkv.embeddings"), ("blocks", "rwkv.blocks"), ("ln_out", "rwkv.ln_out"), ("ln0", "pre_ln"),
        (".att.", ".attention."), (".ffn.", ".feed_forward."), ("mix_k", "mix_key"), ("mix_v", "mix_value"),
        ("mix_r", "mix_receptance"),
    )  # fmt: skip

    @pytest.fixture
    def theirs(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        named = {}
        for name, tensor in weights.items():
            for ours, other in self.OURS:
                name = name.replace(ours, other, 1)
            named[name] = tensor
        return named

    @pytest.mark.parametrize("form", ["one", "split", "pickled", "pickled and split", "file", "safetensors"])
    def test_every_form_gives_the_same_model(
        self, weights: dict[str, Tensor], theirs: dict[str, Tensor], tmp_path: Path, form: str
    ) -> None:
        directory = tmp_path / "hf"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps({"model_type": "rwkv", "hidden_size": 16}))
        source, options = directory, {}
        match form:
            case "one":
                save_file(theirs, directory / "model.safetensors")
            case "split":
                split(theirs, directory, "model", ".safetensors", save_file)
            case "pickled":
                save(theirs, directory / "pytorch_model.bin")
            case "pickled and split":
                split(theirs, directory, "pytorch_model", ".bin", torch.save)
            case "file":
                source = save(theirs, tmp_path / "pytorch_model.bin")
            case _:
                save_file(theirs, source := tmp_path / "w.safetensors")
        done = convert(source, tmp_path / "model", **options)
        assert (done.config.spikes, done.config.n_layer, done.assumed) == ("none", 2, None)
        found = load_file(tmp_path / "model" / "model.safetensors")
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())

    def test_its_own_tokenizer_is_taken(self, theirs: dict[str, Tensor], tmp_path: Path) -> None:
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "config.json").write_text('{"model_type": "rwkv"}')
        save_file(theirs, tmp_path / "hf" / "model.safetensors")
        (tmp_path / "hf" / "tokenizer.json").write_text("{}")
        with pytest.raises(UserError, match=r"hf/tokenizer\.json"):
            convert(tmp_path / "hf", tmp_path / "model")
        convert(tmp_path / "hf", tmp_path / "model", tokenizer="bytes")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon is 0.001, here it is always 1e-05"),
            ({"attention_hidden_size": 32, "hidden_size": 16}, "attention_hidden_size is 32"),
        ],
    )
    def test_what_is_computed_otherwise_is_refused(
        self, tmp_path: Path, settings: dict[str, Any], message: str
    ) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "rwkv", **settings}))
        with pytest.raises(UserError, match=message):
            convert(tmp_path, tmp_path / "model")

    def test_loading_it_as_ours_says_to_convert(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "rwkv"}')
        with pytest.raises(UserError, match="convert it first: spikegpt convert"):
            load(tmp_path)
        with pytest.raises(UserError, match="has no weights: neither"):
            convert(tmp_path, tmp_path / "model")

    def test_logits_are_transformers(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.RwkvConfig(
            vocab_size=256, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, rescale_every=0
        )
        torch.manual_seed(0)
        model = transformers.RwkvForCausalLM(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.uniform_(0, 1) if "time_mix" in name else parameter.normal_(0, 0.5)
        model.save_pretrained(tmp_path / "hf")
        convert(tmp_path / "hf", tmp_path / "model")
        ids = torch.arange(40)[None]
        with torch.no_grad():
            torch.testing.assert_close(load(tmp_path / "model")(ids)[0], model(ids).logits, rtol=1e-4, atol=1e-4)


class TestRoundedVocabulary:
    """Rows beyond the tokenizer's tokens stand for none: kept, and never chosen."""

    @pytest.fixture
    def rounded(self, weights: dict[str, Tensor], tmp_path: Path) -> Path:
        for name in ("emb.weight", "head.weight"):
            weights[name] = torch.cat([weights[name], weights[name].abs() * 100])  # chosen at once, if they could be
            weights[name] = weights[name][:320].clone()
        return save(weights, tmp_path / "rounded.pth")

    def test_it_is_converted_and_told(self, weights: dict[str, Tensor], rounded: Path, tmp_path: Path) -> None:
        done = convert(rounded, tmp_path / "model", kind="spikegpt", tokenizer="bytes")
        assert done.config.vocab_size == 320
        assert done.assumed == "the last 64 of 320 rows are taken for padding and stand for no token"
        plain = {
            name: tensor[:256] if name in ("emb.weight", "head.weight") else tensor for name, tensor in weights.items()
        }
        convert(save(plain, tmp_path / "plain.pth"), tmp_path / "plain", kind="spikegpt")
        ids = torch.tensor([list(b"The cat")])
        assert torch.equal(load(tmp_path / "model")(ids)[0][..., :256], load(tmp_path / "plain")(ids)[0])
        with pytest.raises(UsageError, match="the weights have 320 tokens: say which with --tokenizer"):
            convert(rounded, tmp_path / "other")

    @pytest.mark.skipif(MISSING is not None, reason=f"the engine: {MISSING}")
    def test_the_tail_is_never_chosen(self, rounded: Path, tmp_path: Path) -> None:
        convert(rounded, tmp_path / "model", kind="spikegpt", tokenizer="bytes")
        model = load(tmp_path / "model")
        ids = torch.tensor([list(b"The cat")])
        assert int(model(ids)[0][0, -1].argmax()) >= 256
        for temperature in (0, 1):
            text = generate(model, "The cat", max_tokens=20, temperature=temperature, seed=1, repetition_penalty=1.1)
            list(text)
            assert text.tokens == 20
        assert len(generate_batch(model, ["The", "A cat"], max_tokens=5, seed=1)) == 2
        events = SpikeGPT(ModelConfig(n_layer=1, n_embd=32, vocab_size=320, spikes="before"))
        with torch.no_grad():
            events.head.weight[256:] = 1.0
        save_model(tmp_path / "events", events, ByteTokenizer())
        engine = EventModel.load(tmp_path / "events")
        for temperature in (0, 1):
            list(text := generate(engine, "The cat", max_tokens=20, temperature=temperature, seed=1))
            assert text.tokens == 20
        told = json.loads((tmp_path / "model" / "generation_config.json").read_text())
        assert told == {"suppress_tokens": list(range(256, 320))}

    @pytest.mark.parametrize("rows", [257, 260, 384, 1024])
    def test_other_sizes_belong_to_other_tokenizers(self, tmp_path: Path, rows: int) -> None:
        weights = random_weights(ModelConfig(n_layer=1, n_embd=8, vocab_size=rows))
        with pytest.raises(UserError, match="too many to be that number rounded up: they do not belong together"):
            convert(save(weights, tmp_path / "w.pth"), tmp_path / "model", tokenizer="bytes")


def hostile() -> dict[str, tuple[Any, str]]:
    """State dicts that torch loads, and what is wrong with them."""
    like = random_weights(CONFIG)["head.weight"]
    itself: dict[str, Any] = {}
    itself["self"] = itself
    endless: list[Any] = []
    endless.append(endless)
    huge = torch.zeros(1).expand(10**9, 16)
    return {
        "no data": ({"head.weight": like.to("meta")}, "has a shape but no data"),
        "sparse": ({"head.weight": like.to_sparse()}, "is a sparse_coo tensor"),
        "repeated": ({"head.weight": huge, "emb.weight": huge}, "is larger than its data"),
        "complex": ({"head.weight": like.to(torch.complex64)}, "is of type torch.complex64"),
        "itself": (itself, "'self' is dict, not a tensor"),
        "endless": ({"x": endless}, "'x' is list, not a tensor"),
        "a number as a name": ({1: like}, "1 is no name of a tensor"),
        "a far block": ({"blocks.999999999.x": like}, "has a block 999999999, but only 43 tensors"),
        "a farther block": ({f"blocks.{'9' * 5000}.x": like}, "has 1 "),
        "no tokens": ({"emb.weight": like[:0], "head.weight": like[:0]}, "vocab_size=0 must be above zero"),
        "a number as a matrix": ({"blocks.0.ffn.key.weight": torch.tensor(1.0)}, "contradicts itself"),
        "too wide": ({"emb.weight": torch.zeros(1, 1 << 17)}, "n_embd=131072 is above 65536"),
    }


@pytest.mark.parametrize(("change", "message"), hostile().values(), ids=hostile())
def test_hostile_tensors_get_one_line_quickly(
    weights: dict[str, Tensor], tmp_path: Path, change: dict[Any, Any], message: str
) -> None:
    path = save(weights | change, tmp_path / "w.pth")
    begun = time.monotonic()
    with pytest.raises(UserError, match=message) as error:
        convert(path, tmp_path / "model")
    assert time.monotonic() - begun < 5
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


def test_a_pickle_that_would_take_forever_is_not_read(tmp_path: Path) -> None:
    """{(((1,), (1,)), ...): 1}, sixty deep: hashing the key takes 2^60 steps."""
    nested = b"".join(b"h%c\x86q%c" % (i + 1, i + 2) for i in range(60))
    torch.save({"a": torch.ones(1)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        for name in plain.namelist():
            data = b"\x80\x02}(K\x01\x85q\x01" + nested + b"K\x01u." if name.endswith("data.pkl") else plain.read(name)
            archive.writestr(name, data)
    with pytest.raises(UserError, match="its tuples are nested deeper than 16"):
        convert(tmp_path / "w.pth", tmp_path / "model")


def test_a_compressed_archive_is_not_unpacked(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save(weights, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "w.pth", "w", 8) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    with pytest.raises(UserError, match="it is compressed"):
        convert(tmp_path / "w.pth", tmp_path / "model")


HEADERS = {
    "a list": b"[]",
    "deep": b'{"a":' * 200 + b"1" + b"}" * 200,
    "negative": b'{"emb.weight": {"dtype": "F32", "shape": [-4, -4], "data_offsets": [0, 64]}}',
    "no shape": b'{"emb.weight": {"dtype": "F32", "data_offsets": [0, 64]}}',
    "of texts": b'{"emb.weight": {"dtype": "F32", "shape": ["4"], "data_offsets": [0, 64]}}',
    "of no weights": b'{"emb.weight": {"dtype": "I64", "shape": [8], "data_offsets": [0, 64]}}',
    "huge": b'{"emb.weight": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 64]}}',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_headers_of_safetensors_that_are_none(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with pytest.raises(UserError, match="not a safetensors file of weights"):
        convert(tmp_path / "w.safetensors", tmp_path / "model")


def test_convert_and_pack_where_one_stands(
    weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(weights, tmp_path / "w.pth")
    events = SpikeGPT(ModelConfig(n_layer=1, n_embd=32, spikes="before"))
    save_model(tmp_path / "events", events, ByteTokenizer())
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(SystemExit):
        main(["convert", "../w.pth", "."])
    assert "the current directory is in it; name another directory" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "events")
    with pytest.raises(SystemExit):
        main(["pack", "."])
    assert capsys.readouterr().out.strip() == str(tmp_path / "events-8bit")
    assert (tmp_path / "events-8bit" / "packed.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "events", "events-8bit", "w.pth"]

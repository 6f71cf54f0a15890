"""What is read from files: each kind with a good example, the files of it that are mutated, and its use.

A use raises UserError where it refuses, and AssertionError where it took what it must not take (a silently wrong read).
"""

from __future__ import annotations

import gzip
import json
import lzma
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mutate import Mutation, mutate_bytes, mutate_json, mutate_safetensors
from safetensors.torch import save_file

from spikegpt.checkpoint import load_model, save_model
from spikegpt.config import EventConfig, ModelConfig, TrainConfig
from spikegpt.convert import convert
from spikegpt.data.batches import Streams, Windows
from spikegpt.data.corpus import documents
from spikegpt.data.token_file import TokenFile
from spikegpt.data.tokens import prepare, prepare_files
from spikegpt.engine import EventModel, pack
from spikegpt.engine.packed import unpack
from spikegpt.errors import UserError
from spikegpt.generation.decode import generate
from spikegpt.loading import load
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer, CharTokenizer, load_tokenizer, train_bpe
from spikegpt.training.language import fit_text

TEXT = "The cat sat by the window and looked at the moon.\n" * 12
PROBES = ("The cat", "猫 é\n", " a  b\t")


@dataclass(frozen=True)
class Target:
    """Something that reads files: `mutations` of a folder that `make` filled, then `use` of it."""

    name: str
    make: Callable[[Path], object]
    mutations: dict[str, Mutation]
    use: Callable[[Path], object]
    weight: float = 1.0
    """How often it is tried, relative to others: slow ones less."""


def targets() -> tuple[Target, ...]:
    """Every file that the package reads."""
    directory = {"config.json": mutate_json, "model.safetensors": mutate_safetensors, "tokenizer.json": mutate_json}
    packed = {"config.json": mutate_json, "packed.safetensors": mutate_safetensors, "tokenizer.json": mutate_json}
    run = "run/checkpoints/step-00000002/"
    return (
        Target("model directory", _model, directory, _generate),
        Target("shards", _shards, {"model.safetensors.index.json": mutate_json, **_SHARDS}, _generate),
        Target("packed 8", lambda folder: _packed(folder, 8), packed, _run_packed),
        Target("packed 4", lambda folder: _packed(folder, 4), packed, _run_packed),
        Target(
            "training checkpoint", _begun,
            {run + "training.json": mutate_json, run + "training.safetensors": mutate_safetensors,
             run + "model.safetensors": mutate_safetensors, run + "config.json": mutate_json,
             "run/metrics.jsonl": mutate_bytes, "run/train.json": mutate_json},
            _resume, 0.15,
        ),
        Target("session", _session, {"night.state": mutate_safetensors}, _continue),
        Target("token file", _tokens, {"train.json": mutate_json, "train.bin": mutate_bytes}, _windows),
        Target("pth", _pth, {"w.pth": mutate_bytes}, lambda folder: _convert(folder / "w.pth")),
        Target("old pth", _old_pth, {"w.pth": mutate_bytes}, lambda folder: _convert(folder / "w.pth")),
        Target("safetensors", _safetensors, {"w.safetensors": mutate_safetensors}, lambda f: _convert(f / "w.safetensors")),
        Target("rwkv.cpp", _rwkvcpp, {"w.bin": mutate_bytes}, lambda folder: _convert(folder / "w.bin")),
        Target(
            "transformers' directory", _huggingface,
            {"hf/config.json": mutate_json, "hf/model.safetensors": mutate_safetensors}, lambda f: _convert(f / "hf"),
        ),
        Target("bpe", _bpe, {"tokenizer.json": mutate_json}, _tokenize),
        Target("characters", _characters, {"tokenizer.json": mutate_json}, _tokenize),
        Target("vocabulary", _vocabulary, {"vocab.json": mutate_bytes}, _reference_vocabulary),
        Target("text", _text, {"a.txt": mutate_bytes}, _read_text, 2),
        Target("json lines", _lines, {"a.jsonl": mutate_bytes}, lambda folder: _read(folder / "a.jsonl"), 2),
        Target("gzip", _gzip, {"a.txt.gz": mutate_bytes}, lambda folder: _read(folder / "a.txt.gz")),
        Target("xz", _xz, {"a.jsonl.xz": mutate_bytes}, lambda folder: _read(folder / "a.jsonl.xz")),
    )  # fmt: skip


# Making.


def _model(folder: Path) -> None:
    torch.manual_seed(0)
    save_model(folder / "made", SpikeGPT(ModelConfig(n_layer=2, n_embd=16, vocab_size=256)), ByteTokenizer())
    _up(folder)


def _up(folder: Path) -> None:
    for path in (folder / "made").iterdir():
        path.rename(folder / path.name)
    (folder / "made").rmdir()


_SHARDS: dict[str, Mutation] = {f"model-0000{i}-of-00002.safetensors": mutate_safetensors for i in (1, 2)}


def _shards(folder: Path) -> None:
    _model(folder)
    tensors = load_model(folder).state_dict()
    (folder / "model.safetensors").unlink()
    where = {name: list(_SHARDS)[i % 2] for i, name in enumerate(tensors)}
    for file in _SHARDS:
        save_file({name: tensors[name].clone() for name in tensors if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def _packed(folder: Path, bits: int) -> None:
    torch.manual_seed(0)
    config = ModelConfig(n_layer=1, n_embd=32, spikes="before", event=EventConfig(leak=0.5))
    save_model(folder / "float", SpikeGPT(config), ByteTokenizer())
    pack(folder / "float", folder / "made", bits=bits)
    _up(folder)


def _begun(folder: Path) -> None:
    (folder / "text.txt").write_text(TEXT * 4)
    _fit(folder, resume=False)
    (folder / "run" / "model.safetensors").unlink()


def _fit(folder: Path, *, resume: bool) -> dict[str, Any]:
    corpus = prepare([folder / "text.txt"], ByteTokenizer(), folder / "cache", valid=0, progress=False)
    config = TrainConfig(
        steps=3 if resume else 2,
        batch_size=2,
        context=16,
        warmup=1,
        log_every=1,
        save_every=1,
        schedule="wsd",
        decay=0.1,
    )
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=1, n_embd=16))
    return fit_text(model, ByteTokenizer(), corpus.train, None, config, folder / "run", resume=resume, progress=False)


def _session(folder: Path) -> None:
    _model(folder)
    list(generate(load(folder, engine="float"), "The cat", max_tokens=3, seed=1, save_state=folder / "night.state"))


def _tokens(folder: Path) -> None:
    (folder / "a.txt").write_text(TEXT)
    path = prepare_files(folder / "a.txt", ByteTokenizer(), folder / "cache", progress=False).path
    for suffix in (".bin", ".json"):
        path.with_suffix(suffix).rename(folder / f"train{suffix}")


def _weights(spikes: str = "none") -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return SpikeGPT(ModelConfig(n_layer=1, n_embd=16, vocab_size=256, spikes=spikes)).state_dict()  # type: ignore[arg-type]


def _pth(folder: Path) -> None:
    torch.save(_weights(), folder / "w.pth")


def _old_pth(folder: Path) -> None:
    torch.save(_weights(), folder / "w.pth", _use_new_zipfile_serialization=False)


def _safetensors(folder: Path) -> None:
    save_file({f"module.{name}": tensor for name, tensor in _weights().items()}, folder / "w.safetensors")


def _rwkvcpp(folder: Path) -> None:
    torch.save(_weights(), folder / "a.pth")
    convert(folder / "a.pth", folder / "plain", kind="rwkv4")
    convert(folder / "plain", folder / "w.bin")


def _huggingface(folder: Path) -> None:
    (folder / "hf").mkdir()
    theirs = {
        ".att.": ".attention.",
        ".ffn.": ".feed_forward.",
        "mix_k": "mix_key",
        "mix_v": "mix_value",
        "mix_r": "mix_receptance",
    }
    named = {}
    for name, tensor in _weights().items():
        for ours, other in {**theirs, "ln0": "pre_ln"}.items():
            name = name.replace(ours, other)
        named[name if name.startswith("head") else "rwkv." + name.replace("emb.", "embeddings.", 1)] = tensor
    save_file(named, folder / "hf" / "model.safetensors")
    config = {"model_type": "rwkv", "hidden_size": 16, "attention_hidden_size": 16, "layer_norm_epsilon": 1e-5}
    (folder / "hf" / "config.json").write_text(json.dumps(config))


def _bpe(folder: Path) -> None:
    train_bpe([TEXT], 270).save(folder)


def _characters(folder: Path) -> None:
    CharTokenizer(sorted(set(TEXT + "".join(PROBES)))).save(folder)


def _vocabulary(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps({str(i): chr(97 + i) for i in range(20)}), "utf-16")


def _text(folder: Path) -> None:
    (folder / "a.txt").write_bytes((TEXT + "\n\n\n猫が窓の外を見ている。🌙\r\n" * 5).encode())


def _lines(folder: Path) -> None:
    lines = [json.dumps({"text": f"cat {i} 猫", "meta": [i]}, ensure_ascii=i % 2 == 0) for i in range(20)]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _gzip(folder: Path) -> None:
    (folder / "a.txt.gz").write_bytes(gzip.compress((TEXT * 20).encode()))


def _xz(folder: Path) -> None:
    (folder / "a.jsonl.xz").write_bytes(lzma.compress((json.dumps({"text": TEXT}) + "\n").encode() * 20))


# Using.


def _generate(folder: Path) -> None:
    model = load(folder, engine="float")
    _speak(model, folder)


def _speak(model: Any, folder: Path) -> None:
    ids = torch.tensor([[1, 2, 3]])
    logits, _ = model(ids)
    assert logits.shape == (1, 3, model.config.vocab_size), "logits of another shape than the config says"
    list(generate(model, "ab", max_tokens=3, seed=1))
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    wrong = {name: value for name, value in saved.items() if name in _SIZES and value != getattr(model.config, name)}
    assert not wrong, f"the config says {wrong}, the model is otherwise"


_SIZES = ("vocab_size", "n_layer", "n_embd", "spikes", "architecture")


def _run_packed(folder: Path) -> None:
    model = EventModel.load(folder, threads=1)
    _speak(model, folder)
    logits = unpack(folder)(torch.tensor([[1, 2, 3]]))[0]
    assert logits.shape[-1] == model.config.vocab_size


def _resume(folder: Path) -> None:
    result = _fit(folder, resume=True)
    assert result["step"] == 3, f"it ended at step {result['step']}"


def _continue(folder: Path) -> None:
    text = generate(load(folder, engine="float"), "", max_tokens=3, seed=1, state=folder / "night.state")
    list(text)
    assert text.tokens == 3 or text.reason != "length"


def _windows(folder: Path) -> None:
    file = TokenFile(folder / "train.bin")
    file.check(256)
    for batches in (Windows(file, 2, 16, 0), Streams(file, 2, 16, 0)):
        ids, targets = batches.next_batch()
        assert ids.shape == targets.shape == (2, 16)
        assert int(torch.stack([ids, targets]).max()) < 256
    assert bytes(file.ids.astype("u1")).decode() in TEXT, "other tokens than were written"


def _convert(source: Path) -> None:
    destination = source.parent / "out"
    done = convert(source, destination, kind="rwkv4")
    model = load(destination, engine="float")
    assert model.config == done.config
    assert model(torch.tensor([[1, 2]]))[0].shape == (1, 2, 256)


def _tokenize(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for text in PROBES:
        try:
            ids = tokenizer.encode(text)
        except UserError:
            continue
        assert tokenizer.decode(ids) == text, f"{text!r} came back as {tokenizer.decode(ids)!r}"
        assert 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.vocab_size
    tokenizer.save(folder / "again")
    assert load_tokenizer(folder / "again").digest == tokenizer.digest


def _reference_vocabulary(folder: Path) -> None:
    from spikegpt.tokenizer import load_reference_vocabulary

    tokenizer = load_reference_vocabulary(folder / "vocab.json")
    assert tokenizer.decode(tokenizer.encode(tokenizer.decode(range(tokenizer.vocab_size)))) is not None


def _read_text(folder: Path) -> None:
    found = "".join(_read(folder / "a.txt"))
    assert found == (folder / "a.txt").read_bytes().decode("utf-8").removeprefix("\ufeff"), (
        "another text than the file's"
    )


def _read(path: Path) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(documents(path))

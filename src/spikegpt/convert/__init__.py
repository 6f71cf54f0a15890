"""Weights in and out: published SpikeGPT and RWKV-4, rwkv.cpp's and transformers', to a model directory and back.

Every file is mapped and copied tensor by tensor, which keeps memory small; nothing in it is executed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import hub
from ..checkpoint import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    check_layers,
    check_replaceable,
    describe,
    load_model,
    read_config,
    resolve,
    save_model,
    weight_files,
)
from ..config import ModelConfig
from ..convert import huggingface, published, rwkvcpp
from ..engine.packed import is_packed
from ..errors import UsageError, UserError
from ..files import absolute, write_atomically, write_directory, write_json
from ..tokenizer import ByteTokenizer, Tokenizer, load_reference_vocabulary, load_tokenizer
from .names import check, config_of, renamed, unwrapped
from .stored import Stored, read_safetensors, write_safetensors

__all__ = ["KINDS", "Conversion", "convert"]

KINDS = {"spikegpt": "SpikeGPT", "rwkv4": "RWKV-4"}
"""Who may have trained weights of these names and shapes."""
_SPARE = 64  # rows beyond the tokenizer's tokens that any vocabulary may have; large ones a sixteenth of their size
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Conversion:
    """What was written, and what had to be assumed."""

    destination: Path
    config: ModelConfig
    assumed: str | None = None
    """What neither the weights nor an option said, with the option that says otherwise."""

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values: the shape of the model, and where it is."""
        config = self.config
        facts: dict[str, object] = {
            "written": str(self.destination),
            "architecture": config.architecture,
            "layers": config.n_layer,
        }
        facts |= {"channels": config.n_embd, "vocabulary": config.vocab_size, "spikes": config.spikes}
        facts |= {"spike_embedding": config.spike_embedding}
        return facts | ({"assumed": self.assumed} if self.assumed else {})


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    tokenizer: str | None = None,
    kind: str | None = None,
    spike_embedding: bool | None = None,
    dtype: str | None = None,
    force: bool = False,
) -> Conversion:
    """Convert weights from one form to another; the forms are read off `source` and the name of `destination`.

    A state dict of a SpikeGPT or RWKV-4 in PyTorch's format (`.pth`, `pytorch_model.bin`) or in safetensors, an rwkv.cpp
    file, or a directory of transformers' RWKV-4 becomes a model directory; a model directory becomes a `.pth` that the
    reference loads or, if it is an RWKV-4, an rwkv.cpp file (`.bin`) or, with `dtype`, another model directory.

    Args:
        tokenizer: "bytes", a `tokenizer.json`, or a character vocabulary in UTF-16 JSON; None: the one in the source
            directory, else bytes for 256 tokens. Weights may have a few more rows than it has tokens, where their number
            was rounded up to a multiple of 8 or more; generation never chooses those rows.
        kind: which of the two trained the weights, for both have the same names and shapes; None: RWKV-4 in rwkv.cpp's
            and transformers' formats or by the name "RWKV-4...", else SpikeGPT.
        spike_embedding: whether the embedding is made binary; None: in a SpikeGPT.
        dtype: float32, float16 or bfloat16: what the weights of the model directory written are rounded to.
        force: replace a destination that exists.
    """
    source, destination = Path(source), Path(destination)
    if not source.exists():
        raise UsageError(f"there is no {source}")
    if destination.exists() and source.samefile(destination):
        raise UsageError(f"{source} cannot be converted onto itself; choose another destination")
    if source.is_dir() and not huggingface.is_one(source):
        if (tokenizer, kind, spike_embedding) != (None, None, None):
            raise UsageError(f"{source} describes its own weights; omit --tokenizer, --kind and --spike-embedding")
        return _export(source, destination, dtype, force)
    if dtype is not None:
        raise UsageError("weights are rounded from a model directory; convert without --dtype first")
    if kind is not None and kind not in KINDS:
        raise UsageError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    return _import(source, destination, tokenizer, kind, spike_embedding, force)


def _import(
    source: Path, destination: Path, tokenizer: str | None, kind: str | None, spike_embedding: bool | None, force: bool
) -> Conversion:
    if destination.suffix in (published.SUFFIX, rwkvcpp.SUFFIX):
        raise UsageError(f"{source} becomes a model directory first; convert that to {destination.name}")
    check_replaceable(destination, force)
    stored, by_form = _read(source)
    assumed = []
    kind = kind or by_form
    if kind is None:
        kind, other = ("rwkv4", "spikegpt") if source.name.lower().startswith("rwkv-4") else ("spikegpt", "rwkv4")
        assumed.append(f"taken for weights of {KINDS[kind]}; if they are {KINDS[other]}'s, say --kind {other}")
    config = config_of(
        source, stored, spikes="after" if kind == "spikegpt" else "none", spike_embedding=spike_embedding
    )
    if tokenizer is None and (source / TOKENIZER).is_file():
        tokenizer = str(source / TOKENIZER)
    chosen = _tokenizer(tokenizer, config.vocab_size)
    if spare := config.vocab_size - chosen.vocab_size:
        assumed.append(f"the last {spare} of {config.vocab_size} rows are taken for padding and stand for no token")

    def fill(inside: Path) -> None:
        chosen.save(inside)
        write_json(inside / CONFIG, describe(config))
        write_safetensors(inside / WEIGHTS, renamed(stored, config))
        hub.add_files(inside, absolute(destination).name)

    write_directory(destination, fill)
    return Conversion(destination, config, "; ".join(assumed) or None)


def _read(source: Path) -> tuple[dict[str, Stored], str | None]:
    """Foreign weights under the published names, and who trained them where their form says so."""
    if source.is_dir():
        stored = huggingface.read(source)
    elif rwkvcpp.is_one(source):
        return rwkvcpp.read(source), "rwkv4"
    else:
        stored = read_safetensors(source) if source.suffix == ".safetensors" else published.read(source)
    stored = unwrapped(source, stored)
    return (huggingface.renamed(stored), "rwkv4") if huggingface.has_its_names(stored) else (stored, None)


def _export(source: Path, destination: Path, dtype: str | None, force: bool) -> Conversion:
    source = resolve(source)
    config = read_config(source)
    if is_packed(source):
        raise UsageError(f"{source} is packed for the engine; convert the model that it was made from")
    if dtype is not None:
        if dtype not in DTYPES:
            raise UsageError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")
        save_model(destination, load_model(source), dtype=DTYPES[dtype], force=force)
        return Conversion(destination, config)
    if destination.suffix not in (published.SUFFIX, rwkvcpp.SUFFIX):
        raise UsageError(
            f"{destination}: name it .pth, or .bin for rwkv.cpp, to say what the model is to become, or give --dtype"
        )
    foreign = published if destination.suffix == published.SUFFIX else rwkvcpp
    foreign.check(source, config)
    stored: dict[str, Stored] = {}
    for path in weight_files(source):
        stored |= read_safetensors(path)
    check_layers(config, stored, source)
    check(source, stored, config)
    if destination.exists() and not force:
        raise UsageError(f"{destination} already exists; choose another name or replace it with --force")
    write_atomically(destination, lambda path: foreign.write(path, config, stored))
    return Conversion(destination, config)


def _tokenizer(name: str | None, vocab_size: int) -> Tokenizer:
    """The tokenizer called `name`, which must have `vocab_size` tokens, or as many before they were rounded up."""
    if name is None and vocab_size != ByteTokenizer.vocab_size:
        raise UsageError(
            f"the weights have {vocab_size} tokens: say which with --tokenizer "
            + ("20B_tokenizer.json" if vocab_size == 50277 else "FILE (a tokenizer.json, or characters in UTF-16 JSON)")
        )
    tokenizer = ByteTokenizer() if name in (None, "bytes") else _read_tokenizer(Path(name))
    spare = vocab_size - tokenizer.vocab_size
    if spare and not (vocab_size % 8 == 0 and 0 < spare <= max(_SPARE, vocab_size // 16)):
        raise UserError(
            f"the tokenizer {name or 'bytes'} has {tokenizer.vocab_size} tokens, the weights {vocab_size}, too many to be "
            "that number rounded up: they do not belong together; name another with --tokenizer"
            if spare > 0
            else f"the tokenizer {name or 'bytes'} has {tokenizer.vocab_size} tokens, the weights {vocab_size}: "
            "they do not belong together; name another with --tokenizer"
        )
    return tokenizer


def _read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer file: UTF-16 (its byte order mark tells) is a character vocabulary, else it is a `tokenizer.json`."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                return load_reference_vocabulary(path)
    return load_tokenizer(path)

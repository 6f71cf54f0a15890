"""Make `tests/data/rwkv4`: a tiny RWKV-4 trained on this project's README, in every format that is read.

    python tests/data/make_rwkv4.py

The logits beside it are those of the `rwkv` package (the reference implementation's own release), in float32.
Needs the packages rwkv, safetensors and torch; the files are in the repository, so that tests do not.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from spikegpt.config import ModelConfig, TrainConfig
from spikegpt.data import prepare
from spikegpt.files import write_readable
from spikegpt.model import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer
from spikegpt.training.language import fit_text

HERE = Path(__file__).parent
OUT = HERE / "rwkv4"
SHAPE = ModelConfig(n_layer=2, n_embd=16, n_ffn=64, vocab_size=256, context=64, spikes="none", dropout=0.0)
PROMPT = b"A spiking neuron is silent until its membrane reaches the threshold."
RENAMED = (
    ("emb.", "embeddings."), (".ln0.", ".pre_ln."), (".att.", ".attention."), (".ffn.", ".feed_forward."),
    ("time_mix_k", "time_mix_key"), ("time_mix_v", "time_mix_value"), ("time_mix_r", "time_mix_receptance"),
)  # fmt: skip


def trained() -> dict[str, Tensor]:
    """Weights after a minute of learning bytes: no matrix is zero any more."""
    torch.manual_seed(0)
    model = SpikeGPT(SHAPE)
    config = TrainConfig(steps=600, batch_size=8, lr=6e-3, warmup=20, log_every=100, eval_every=0, save_every=0)
    with tempfile.TemporaryDirectory() as folder:
        text = [HERE.parents[1] / "README.md"]
        corpus = prepare(text, ByteTokenizer(), Path(folder) / "tokens", valid=0, progress=False)
        fit_text(model, ByteTokenizer(), corpus.train, None, config, Path(folder) / "run", progress=False)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def transformers_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as transformers' RwkvForCausalLM names them."""
    named = {}
    for name, tensor in weights.items():
        for ours, theirs in RENAMED:
            name = name.replace(ours, theirs)
        named[name if name.startswith("head.") else f"rwkv.{name}"] = tensor
    return named


def write_rwkv_cpp(path: Path, weights: dict[str, Tensor], half: bool) -> None:
    """rwkv.cpp's format 101: a header, then each tensor with its shape, type and name."""
    with path.open("wb") as file:
        file.write(struct.pack("<6i", 0x67676D66, 101, SHAPE.vocab_size, SHAPE.n_embd, SHAPE.n_layer, int(half)))
        for name, tensor in weights.items():
            values = -torch.exp(tensor) if "time_decay" in name else tensor.squeeze()
            kind = int(half and values.ndim == 2)
            data = values.numpy().astype("<f2" if kind else "<f4")
            file.write(struct.pack("<3i", values.ndim, len(name), kind))
            file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)) + name.encode() + data.tobytes())


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """One file of safetensors, readable by all."""
    write_readable(path, lambda staged: save_file(tensors, staged, {"format": "pt"}))


def write_transformers(folder: Path, weights: dict[str, Tensor]) -> None:
    """Three directories of transformers: one safetensors file, two shards with an index, an old pytorch_model.bin."""
    config = {
        "architectures": ["RwkvForCausalLM"], "model_type": "rwkv", "vocab_size": SHAPE.vocab_size,
        "hidden_size": SHAPE.n_embd, "attention_hidden_size": SHAPE.n_embd, "intermediate_size": SHAPE.hidden,
        "num_hidden_layers": SHAPE.n_layer, "context_length": SHAPE.context, "layer_norm_epsilon": 1e-5,
        "rescale_every": 6, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False,
    }  # fmt: skip
    for name in ("safetensors", "sharded", "pickled"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_safetensors(folder / "safetensors" / "model.safetensors", weights)
    torch.save(weights, folder / "pickled" / "pytorch_model.bin")
    names = list(weights)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, inside in shards.items():
        write_safetensors(folder / "sharded" / file, {name: weights[name] for name in inside})
    index = {
        "metadata": {"total_size": sum(4 * tensor.numel() for tensor in weights.values())},
        "weight_map": {name: file for file, inside in shards.items() for name in inside},
    }
    (folder / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def reference_logits(path: Path) -> np.ndarray:
    """float32 [T, 256]: what the `rwkv` package predicts after each byte of the prompt."""
    os.environ["RWKV_JIT_ON"] = "0"
    from rwkv.model import RWKV

    model = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32", verbose=False)
    logits, _ = model.forward(list(PROMPT), None, full_output=True)
    return logits.numpy().astype(np.float32)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    weights = trained()
    torch.save(weights, OUT / "rwkv-4.pth")
    write_rwkv_cpp(OUT / "rwkv-4-float32.bin", weights, half=False)
    write_rwkv_cpp(OUT / "rwkv-4-float16.bin", weights, half=True)
    write_transformers(OUT / "transformers", transformers_names(weights))
    ids = np.frombuffer(PROMPT, np.uint8).astype(np.int64)
    np.savez_compressed(OUT / "expected.npz", ids=ids, logits=reference_logits(OUT / "rwkv-4.pth"))


if __name__ == "__main__":
    main()

"""A training run small enough to do many times; also the program that other processes run.

python training.py OUT CORPUS FIT_ARGUMENTS MODEL_FIELDS TRAIN_FIELDS   (the last three in JSON)
"""

import json
import sys
from pathlib import Path

import torch

from spikegpt.config import ModelConfig, TrainConfig
from spikegpt.data.token_file import TokenFile
from spikegpt.data.tokens import Corpus, prepare
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer
from spikegpt.training.language import fit_text

MODEL = {"n_layer": 2, "n_embd": 32, "context": 32, "dropout": 0.1}
TRAIN = {
    "steps": 8, "batch_size": 4, "warmup": 2, "lr": 5e-3,
    "log_every": 2, "eval_every": 4, "eval_tokens": 300, "save_every": 3,
}  # fmt: skip


def make_corpus(directory: Path) -> Path:
    """Token files of a text with enough structure to learn, below `directory`."""
    text = directory / "counting.txt"
    text.write_text("\n\n\n".join(f"{n} sheep and {n + 1} goats make {2 * n + 1} animals." for n in range(400)))
    prepare([text], ByteTokenizer(), directory / "cache", valid=0.1, progress=False)
    return next((directory / "cache").glob("tokens-*"))


def run(out: Path, corpus: Path, *, seed=0, model=None, train=None, valid=True, backend="auto", **arguments):
    """Train; the model and the result of `fit_text`."""
    files = Corpus(TokenFile(corpus / "train.bin"), TokenFile(corpus / "valid.bin") if valid else None)
    torch.manual_seed(seed)
    made = SpikeGPT(ModelConfig(**{**MODEL, **(model or {})}), backend=backend)
    config = TrainConfig(**{**TRAIN, **(train or {})})
    arguments = {"progress": False, "device": "cpu", **arguments}
    return made, fit_text(made, ByteTokenizer(), *files, config, Path(out), **arguments)


if __name__ == "__main__":
    out, corpus, arguments, model, train = sys.argv[1:]
    torch.set_num_threads(1)
    run(Path(out), Path(corpus), model=json.loads(model), train=json.loads(train), **json.loads(arguments))

"""How far the reference's generation script is from the function that its training code trains.

python -m benchmarks.parity [--json FILE] [--model DIR ...] [--layers 8] [--text FILE]: on the reference's own small
models, on given ones, and on models trained here on the text, deep enough to meet the halving of the residual. First
checks that ours is the trained function.
"""

from __future__ import annotations

import _pydecimal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.table import make_parser, report
from spikegpt.checkpoint import load_model
from spikegpt.config import ModelConfig, TrainConfig
from spikegpt.generation.published import SPIKING_VOCABULARY, reference_generation, rescaled, without_spike_embedding
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.training.recipe import train_on

SHARED = Path(__file__).resolve().parents[2] / "shared"
SHAKESPEARE = SHARED / "data" / "tinyshakespeare" / "input.txt"
LIBRARY = Path(_pydecimal.__file__)
"""A long text that every Python has."""
GOLDEN = {
    "official-rwkv-3x64": ModelConfig(n_layer=3, n_embd=64, vocab_size=256),
    "official-ffnpre-7x64": ModelConfig(n_layer=7, n_embd=64, vocab_size=77, architecture="RWKV-ffnPre"),
}
WINDOW, CHANNELS = 256, 64


def golden(name: str) -> tuple[SpikeGPT, Tensor, Tensor]:
    """A model that the reference trained, with tokens and targets [B, T]; its logits are checked."""
    model = SpikeGPT(GOLDEN[name]).eval()
    model.load_state_dict(torch.load(SHARED / "golden" / f"{name}.pth", weights_only=True))
    with np.load(SHARED / "golden" / f"{name}.npz") as arrays:
        tokens, targets, logits = (torch.from_numpy(arrays[key]) for key in ("tokens", "targets", "logits"))
    with torch.no_grad():
        assert difference(model(tokens)[0], logits) < 1e-4, "ours is not the trained function"
    return model, tokens, targets


def trained(layers: int, text: str, steps: int, folder: Path) -> SpikeGPT:
    """A model of that depth trained on the text."""
    (folder / "train.txt").write_text(text)
    train_on(
        [folder / "train.txt"], folder / "run", shape="tiny", tokenizer="bytes",
        overrides={"n_layer": layers, "n_embd": CHANNELS, "context": 128}, cache=folder / "cache",
        config=TrainConfig(steps=steps, batch_size=8, save_every=0, eval_every=0),
    )  # fmt: skip
    return load_model(folder / "run")


def windows(model: SpikeGPT, text: str) -> tuple[Tensor, Tensor]:
    """Tokens and targets [B, T] from the start of the text."""
    assert model.tokenizer is not None
    ids = torch.from_numpy(model.tokenizer.encode(text)[: 16 * WINDOW + 1].astype(np.int64))
    return ids[:-1].view(-1, WINDOW), ids[1:].view(-1, WINDOW)


def variants(model: SpikeGPT) -> dict[str, Callable[[SpikeGPT], SpikeGPT]]:
    """What of the script's behaviour there is to a model of this kind, by name."""
    if model.config.architecture == "RWKV-ffnPre":
        return {"rescaled (the script itself stops on ffnPre)": rescaled}
    parts: dict[str, Callable[[SpikeGPT], SpikeGPT]] = {}
    if model.config.vocab_size != SPIKING_VOCABULARY:
        parts["embedding does not spike"] = without_spike_embedding
    if model.config.n_layer > 6:
        parts["rescaled"] = rescaled
    return parts | {"the script": reference_generation}


@torch.no_grad()
def rows(name: str, model: SpikeGPT, tokens: Tensor, targets: Tensor) -> list[dict[str, Any]]:
    """One row for each variant, beside the trained function."""
    expected = model(tokens)[0]
    base = bits(expected, targets)
    found = [{"model": name, "computes": "what was trained", "bits per token": base}]
    for what, change in variants(model).items():
        logits = change(model)(tokens)[0]
        found.append(
            {
                "model": name,
                "computes": what,
                "logits differ by": f"{difference(logits, expected):.1%}",
                "bits per token": bits(logits, targets),
                "more": f"{bits(logits, targets) - base:+.3f}",
                "other first choice": f"{(logits.argmax(-1) != expected.argmax(-1)).float().mean():.1%}",
            }
        )
    return found


def bits(logits: Tensor, targets: Tensor) -> float:
    """Mean cross entropy."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item() / np.log(2)


def difference(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found - expected).norm() / expected.norm())


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, nargs="*", default=[])
    parser.add_argument("--layers", type=int, nargs="*", default=[8])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--text", type=Path, default=SHAKESPEARE if SHAKESPEARE.exists() else LIBRARY)
    options = parser.parse_args()
    if options.quick:
        options.layers, options.steps = [7], 2
    text = options.text.read_text(encoding="utf-8")
    cut = int(len(text) * 0.95)
    table = [row for name in GOLDEN if (SHARED / "golden").is_dir() for row in rows(name, *golden(name))]
    for directory in options.model:
        model = load_model(directory)
        table += rows(directory.name, model, *windows(model, text[cut:]))
    for layers in options.layers:
        with tempfile.TemporaryDirectory() as folder:
            model = trained(layers, text[:cut], options.steps, Path(folder))
            table += rows(f"{layers} x {CHANNELS}, {options.steps} steps", model, *windows(model, text[cut:]))
    report("The reference's generation against what it trains", table, options.json)


if __name__ == "__main__":
    main()

"""Commands that write files, each small enough to be run hundreds of times."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from spikegpt.checkpoint import checkpoint_step, checkpoints, has_weights, latest_checkpoint, load_model, save_model
from spikegpt.cli import main
from spikegpt.config import ModelConfig
from spikegpt.data.tokens import prepare
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer

VOLATILE = {"metrics.jsonl", "training.json", "train.json"}
"""Files with times of the clock in them, or none of the result."""


@dataclass(frozen=True)
class Job:
    """A command, run in a folder of its own that has `inputs/`; what it makes there is called `made`."""

    name: str
    run: Callable[[Path], object]
    check: Callable[[Path, set[str]], None]
    """Raises AssertionError where `made` is neither whole nor absent; is given the digests of what it may be."""
    old: Callable[[Path], object] | None = None
    """What is there before, to be replaced."""


def jobs() -> tuple[Job, ...]:
    """Every kind of command that writes, once as something new and once as a replacement where that can be."""
    return (
        Job("train", _run(_train), _check_run),
        Job("spikify", _run(_spikify), _check_run),
        Job("tokenise", lambda folder: _tokenise(folder, folder / "made"), _check_new),
        Job("convert", lambda folder: _convert(folder, "new.pth"), _check_new),
        Job(
            "convert over",
            lambda folder: _convert(folder, "new.pth"),
            _check_replaced,
            lambda f: _convert(f, "old.pth"),
        ),
        Job("pack", lambda folder: _pack(folder, "new"), _check_new),
        Job("pack over", lambda folder: _pack(folder, "new"), _check_replaced, lambda f: _pack(f, "old")),
        Job("export over", lambda folder: _export(folder, "new"), _check_replaced, lambda f: _export(f, "old")),
    )


def make_inputs(folder: Path) -> None:
    """Texts and models for all the jobs."""
    folder.mkdir(parents=True)
    sheep = "\n\n\n".join(f"{n} sheep and {n + 1} goats make {2 * n + 1} animals." for n in range(400))
    (folder / "text.txt").write_text(sheep)
    for seed, name in enumerate(("old", "new")):
        torch.manual_seed(seed)
        plain = SpikeGPT(ModelConfig(n_layer=1, n_embd=32, vocab_size=256, spikes="none"))
        torch.save(plain.state_dict(), folder / f"{name}.pth")
        save_model(folder / f"{name}-plain", plain, ByteTokenizer())
        save_model(
            folder / f"{name}-events", SpikeGPT(ModelConfig(n_layer=1, n_embd=64, spikes="before")), ByteTokenizer()
        )


def digest(path: Path) -> str:
    """One hash of a file or of all files of a directory that are not hidden, names included; "" if there is none."""
    if not path.exists():
        return ""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    seen = hashlib.sha256()
    for file in files:
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.name not in VOLATILE and not hidden:
            seen.update(f"{file.relative_to(path)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return seen.hexdigest()


def leftovers(folder: Path) -> list[str]:
    """Hidden names of what was written and not finished."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*.tmp-*")]


def _run(command: Callable[[Path, list[str]], object]) -> Callable[[Path], object]:
    """A run that is begun, or resumed where there is a checkpoint."""
    return lambda folder: command(folder, ["--resume"] if latest_checkpoint(folder / "made") else [])


def _train(folder: Path, more: list[str]) -> None:
    _spikegpt(
        "train", "--data", folder / "inputs/text.txt", "--out", folder / "made", "--preset", "tiny",
        "--set", "n_layer=1", "--set", "n_embd=32", "--set", "dropout=0.1", "--context", "32", "--batch-size", "4",
        "--steps", "24", "--save-every", "3", "--eval-every", "8", "--eval-tokens", "200", "--log-every", "2",
        "--cache", folder / "cache", *more,
    )  # fmt: skip


def _spikify(folder: Path, more: list[str]) -> None:
    from spikegpt.config import TrainConfig
    from spikegpt.training.spikify import spikify

    config = TrainConfig(
        steps=12,
        batch_size=2,
        context=32,
        warmup=2,
        distill=0.9,
        match=1.0,
        save_every=2,
        eval_every=0,
        eval_tokens=100,
    )
    spikify(
        folder / "inputs/new-plain", folder / "made", data=[folder / "inputs/text.txt"], config=config,
        cache=folder / "cache", resume=bool(more), progress=False,
    )  # fmt: skip


def _tokenise(folder: Path, made: Path) -> None:
    prepare([folder / "inputs/text.txt"], ByteTokenizer(), made, progress=False)


def _convert(folder: Path, weights: str) -> None:
    arguments = ("--kind", "rwkv4", "--tokenizer", "bytes", "--force")
    _spikegpt("convert", folder / "inputs" / weights, folder / "made", *arguments)


def _pack(folder: Path, name: str) -> None:
    _spikegpt("pack", folder / f"inputs/{name}-events", folder / "made", "--force")


def _export(folder: Path, name: str) -> None:
    _spikegpt("convert", folder / f"inputs/{name}-plain", folder / "made.bin", "--force")


def _spikegpt(*arguments: object) -> None:
    try:
        main([str(each) for each in arguments])
    except SystemExit as ended:
        if ended.code:
            raise


def _check_new(folder: Path, whole: set[str]) -> None:
    assert digest(_made(folder)) in whole | {"", _EMPTY}, f"{_made(folder)} is neither absent nor whole"


def _check_replaced(folder: Path, whole: set[str]) -> None:
    assert digest(_made(folder)) in whole, f"{_made(folder)} is neither the old nor the new one"


def _check_run(folder: Path, _whole: set[str]) -> None:
    """Every checkpoint that has a name is whole and of its step; a finished model is whole."""
    for path in checkpoints(folder / "made"):
        load_model(path)
        assert f'"step": {checkpoint_step(path)},' in (path / "training.json").read_text()
        assert (path / "training.safetensors").stat().st_size > 1000
    if has_weights(folder / "made"):
        load_model(folder / "made")


def _made(folder: Path) -> Path:
    return folder / ("made.bin" if (folder / "made.bin").exists() else "made")


_EMPTY = hashlib.sha256().hexdigest()  # of a directory without anything

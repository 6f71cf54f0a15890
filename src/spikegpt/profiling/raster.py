"""Pictures of spikes: tokens across, channels down, a panel for each layer. T tokens, n neurons."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError, UserError
from ..files import write_atomically
from ..model.neurons import Neuron
from ..model.protocol import evaluating, tokenizer_of
from ..model.sites import neuron_groups
from ..model.spikegpt import SpikeGPT

PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Layer:
    """The neurons of one block, or those at the embedding or the head."""

    name: str
    groups: dict[str, np.ndarray]
    """Spikes [T, n] by the name of the neurons; integers, 0 is silence."""


@dataclass(frozen=True)
class Raster:
    """What a model fired while it read a text."""

    tokens: list[str]
    layers: list[Layer]


@torch.inference_mode()
def record(model: SpikeGPT, text: str) -> Raster:
    """The spikes of every neuron over `text`; UsageError where the model has none, or the text is empty."""
    tokenizer = tokenizer_of(model)
    ids = tokenizer.encode(text)
    if not len(ids):
        raise UsageError("there is no text to read")
    spikes: dict[str, np.ndarray] = {}
    neurons = {name: module for name, module in model.named_modules() if isinstance(module, Neuron)}
    if not neurons:
        raise UsageError("this model has no neurons (spikes='none'): there is nothing to draw")
    handles = [module.register_forward_hook(_keep(name, spikes)) for name, module in neurons.items()]
    try:
        with evaluating(model):
            model(torch.from_numpy(ids.astype(np.int64))[None].to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    layers: dict[str, dict[str, np.ndarray]] = {}
    for group in neuron_groups(model.config):
        layers.setdefault(group.place, {})[group.label] = spikes[group.name]
    tokens = [tokenizer.token_bytes(int(id)).decode("utf-8", "replace") for id in ids]
    return Raster(tokens, [Layer(name, groups) for name, groups in layers.items()])


def as_text(raster: Raster, channels: int) -> str:
    """The spikes as blocks of characters, two channels a line, `channels` of each group (evenly picked)."""
    lines = []
    for layer in raster.layers:
        for name, spikes in layer.groups.items():
            lines.append(
                f"{layer.name} {name}: {_rate(spikes):.1%} of {spikes.shape[1]} neurons fire".replace("  ", " ")
            )
            fired = _pick(spikes, channels) != 0
            fired = np.pad(fired, ((0, 0), (0, fired.shape[1] % 2)))
            lines += ["".join(" ▀▄█"[up + 2 * down] for up, down in zip(*rows, strict=True)) for rows in _pairs(fired)]
    return "\n".join(lines)


def save_picture(raster: Raster, path: str | os.PathLike[str], channels: int | None = None) -> None:
    """A picture file (.png, .svg, .pdf) of the spikes; `channels` of each group (evenly picked), None: all.

    Needs matplotlib, the extra `plot`.
    """
    path = Path(path)
    if path.suffix not in PICTURES:
        raise UsageError(f"{path}: a picture is written as {', '.join(PICTURES)}; name it so")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib: pip install 'spikegpt[plot]' (or leave out --out)") from None
    across = min(3, len(raster.layers))
    down = -(-len(raster.layers) // across)
    width = max(4.0, 0.16 * len(raster.tokens))
    figure = Figure(figsize=(across * width, 3.2 * down), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis, layer in zip(axes, raster.layers, strict=False):
        _draw_layer(axis, layer, raster.tokens, channels)
    for axis in axes[len(raster.layers) :]:
        axis.set_visible(False)
    try:
        write_atomically(path, lambda staged: figure.savefig(staged, format=path.suffix[1:]))
    except ValueError as error:
        raise UserError(f"cannot draw {path}: {error}; draw a shorter text") from None


def _keep(name: str, spikes: dict[str, np.ndarray]) -> Any:
    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor | None]) -> None:
        spikes[name] = output[0][0].cpu().to(torch.int8).numpy()

    return hook


def _pick(spikes: np.ndarray, channels: int | None) -> np.ndarray:
    if channels is not None and channels < 1:
        raise UsageError(f"channels={channels} must be above zero")
    count = spikes.shape[1]
    return spikes if channels is None else spikes[:, np.arange(min(channels, count)) * count // min(channels, count)]


def _pairs(fired: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    rows = fired.T.astype(int)
    return list(zip(rows[::2], rows[1::2], strict=True))


def _rate(spikes: np.ndarray) -> float:
    return np.count_nonzero(spikes) / spikes.size


def _draw_layer(axis: Any, layer: Layer, tokens: list[str], channels: int | None) -> None:
    """One panel: the groups of the layer one below the other, up in blue, negative events in red."""
    groups = {name: _pick(spikes, channels) for name, spikes in layer.groups.items()}
    image = np.concatenate(list(groups.values()), axis=1).T.astype(float)
    largest = np.abs(image).max() or 1.0
    axis.imshow(image, aspect="auto", interpolation="none", cmap="RdBu", vmin=-largest, vmax=largest)
    edges = np.cumsum([0, *(spikes.shape[1] for spikes in groups.values())])
    for edge in edges[1:-1]:
        axis.axhline(edge - 0.5, color="0.4", linewidth=0.6)
    labels = [f"{name}\n{_rate(layer.groups[name]):.0%}".strip() for name in groups]
    axis.set_yticks((edges[:-1] + edges[1:] - 1) / 2, labels, fontsize=7)
    shown = [token.replace("\n", "\\n").replace("$", r"\$") for token in tokens]
    axis.set_xticks(range(len(tokens)), shown, fontsize=6, rotation=90 if max(map(len, shown)) > 1 else 0)
    axis.tick_params(length=0)
    axis.set_title(layer.name, fontsize=9)

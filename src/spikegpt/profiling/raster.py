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
from ..model.classifier import chances_of, so_far
from ..model.neurons import Neuron
from ..model.protocol import evaluating, tokenizer_of
from ..model.sites import neuron_groups
from ..model.spikegpt import SpikeGPT
from ..task import TaskConfig

_MOST_LABELS = 6
"""Labels that are drawn, the likeliest in the end."""
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
    chances: dict[str, np.ndarray]
    """Of a classifier: how probable [T] each label is after each token (of several answers at once, each by itself)."""


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
            logits, _ = model(torch.from_numpy(ids.astype(np.int64))[None].to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    layers: dict[str, dict[str, np.ndarray]] = {}
    for group in neuron_groups(model.config):
        layers.setdefault(group.place, {})[group.label] = spikes[group.name]
    tokens = [tokenizer.token_bytes(int(id)).decode("utf-8", "replace") for id in ids]
    return Raster(
        tokens, [Layer(name, groups) for name, groups in layers.items()], _forming(logits[0], model.config.task)
    )


def _forming(logits: Tensor, task: TaskConfig | None) -> dict[str, np.ndarray]:
    """The labels' probabilities after each token, from the logits [T, K] that each gave; none of a language model."""
    if task is None or task.kind == "regression":
        return {}
    sums, tokens = so_far(logits.float().cpu().numpy())
    found = chances_of(sums / tokens[:, None], tokens, task)
    likeliest = np.argsort(-found[-1])[:_MOST_LABELS]
    return {task.labels[k]: found[:, k] for k in sorted(likeliest)}


def as_text(raster: Raster, channels: int) -> str:
    """The labels as they form and the spikes as blocks of characters, two channels a line, `channels` of each group."""
    lines = [
        f"{label}: {chances[-1]:.1%}\n" + "".join("▁▂▃▄▅▆▇█"[int(7.99 * chance)] for chance in chances)
        for label, chances in raster.chances.items()
    ]
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
    """A picture file (.png, .svg, .pdf) of the spikes, a classifier's labels as they form above them.

    `channels` of each group (evenly picked) are drawn; None: all.
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
    above = int(bool(raster.chances))
    figure = Figure(figsize=(across * width, 3.2 * down + 2.2 * above), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(down + above, across, height_ratios=[0.6] * above + [1.0] * down)
    if above:
        _draw_labels(figure.add_subplot(grid[0, :]), raster)
    for number, layer in enumerate(raster.layers):
        row, column = divmod(number, across)
        _draw_layer(figure.add_subplot(grid[row + above, column]), layer, raster.tokens, channels)
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


def _draw_labels(axis: Any, raster: Raster) -> None:
    """One line a label: how probable it is after each token."""
    for label, chances in raster.chances.items():
        axis.plot(chances, marker="o", markersize=3, label=label)
    axis.set(xlim=(-0.5, len(raster.tokens) - 0.5), ylim=(0, 1), title="label so far")
    _name_tokens(axis, raster.tokens, size=8)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _name_tokens(axis: Any, tokens: list[str], size: int) -> None:
    shown = [token.replace("\n", "\\n").replace("$", r"\$") for token in tokens]
    axis.set_xticks(range(len(tokens)), shown, fontsize=size, rotation=90 if max(map(len, shown)) > 1 else 0)
    axis.tick_params(length=0)


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
    _name_tokens(axis, tokens, size=6)
    axis.set_title(layer.name, fontsize=9)

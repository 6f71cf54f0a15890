"""Writes a directory of NIR chains: `<segment>.nir`, `manifest.json`, and `trace.npz`, what a text put in and brought out."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...checkpoint import load_model, read_config
from ...engine.integers import IntegerModel
from ...engine.packed import is_packed, read
from ...errors import UsageError, UserError
from ...files import write_directory, write_json
from ...model.neurons import LIF, EventNeuron
from ...model.sites import sites
from ...model.spikegpt import SpikeGPT
from .nodes import DIALECTS, DT, nir_package
from .segments import Segment, check_exportable, event_segments, lif_segments, weights

VERSION = 1
"""Of the manifest; another one is refused."""
COMPAT = ("1.0.4", "1.0.8")
TEXT = "It was a dark and stormy night, and the ship lay at anchor in the bay."


def export_nir(
    directory: Path, out: Path, *, dialect: str = "euler", uniform: bool = False, compat: str = "1.0.8", text: str = TEXT,
    ids: np.ndarray | None = None, only: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Write the model in `directory` as NIR chains into the new directory `out`; returns the manifest.

    `uniform`: one threshold for all neurons of a node. `compat` is the oldest version of nir that reads the files. The
    trace is over `text`, or over `ids` [T]. `only` keeps the segments whose name contains it. UsageError for what cannot
    be expressed.
    """
    if dialect not in DIALECTS:
        raise UsageError(f"dialect {dialect!r} is not one of {', '.join(DIALECTS)}")
    if compat not in COMPAT:
        raise UsageError(f"compat {compat!r} is not one of {', '.join(COMPAT)}")
    if out.exists():
        raise UsageError(f"{out} already exists; choose another directory")
    check_exportable(read_config(directory), 8)
    nir = nir_package()
    model, packed = _read(directory)
    check_exportable(model.config, packed.bits if packed else 8)
    if ids is None:
        assert model.tokenizer is not None
        ids = model.tokenizer.encode(text)
    seen = trace(model, ids)
    found = event_segments(packed, dialect, uniform=uniform) if packed else lif_segments(model, dialect)
    manifest: dict[str, Any] = {}

    def fill(inside: Path) -> None:
        arrays: dict[str, np.ndarray] = {"ids": ids}
        described = []
        for segment in (segment for segment in found if only in segment.name):
            nir.write(inside / f"{segment.name}.nir", segment.graph)
            if compat == "1.0.4":
                _without_reset(inside / f"{segment.name}.nir")
            arrays |= _traced(segment, seen, packed)
            described.append(_describe(segment))
        if not described:
            raise UsageError(f"no segment's name contains {only!r}")
        manifest.update(_manifest(model, described, dialect, uniform, nir.version))
        write_json(inside / "manifest.json", manifest)
        np.savez_compressed(inside / "trace.npz", **arrays)  # pyright: ignore[reportArgumentType]

    write_directory(out, fill)
    return manifest


def _read(directory: Path) -> tuple[SpikeGPT, IntegerModel | None]:
    """The float model, and its integers if it is event-driven."""
    if is_packed(directory):
        packed, tokenizer = read(directory)
    else:
        model = load_model(directory)
        if model.config.event is None:
            return model, None
        packed, tokenizer = IntegerModel.of(model), model.tokenizer
    packed = packed.apart()
    model = packed.dequantise()
    model.tokenizer = tokenizer
    return model, packed


def trace(model: SpikeGPT, ids: np.ndarray) -> dict[str, np.ndarray]:
    """`<neuron>/in` float32 and `<neuron>/out` int8 [T, n] of every neuron, `<matrix>/in` of the matrices behind time mixes."""
    seen: dict[str, np.ndarray] = {}

    def note(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
            seen[f"{name}/in"] = inputs[0][0].float().numpy().copy()
            seen[f"{name}/out"] = output[0][0].numpy().astype(np.int8)

        return hook

    def note_input(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            seen[f"{name}/in"] = inputs[0][0].float().numpy().copy()

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (LIF, EventNeuron)):
            handles.append(module.register_forward_hook(note(name)))
        elif name.endswith(".att.output"):
            handles.append(module.register_forward_pre_hook(note_input(name)))
    try:
        with torch.inference_mode():
            model(torch.from_numpy(np.asarray(ids, np.int64))[None])
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _traced(segment: Segment, seen: dict[str, np.ndarray], packed: IntegerModel | None) -> dict[str, np.ndarray]:
    """`<segment>/in`, `/spikes` of its first neurons, and of event-driven models `/sums` of its last matrix."""
    name = segment.name
    if packed is None:
        first = segment.matrices[0] if segment.matrices else name
        return {f"{name}/in": seen[f"{first}/in"], f"{name}/spikes": seen[f"{name}/out"]}
    neuron = {site.name: site.neuron for site in sites(packed.config)}
    last = segment.matrices[-1]
    sums = seen[f"{neuron[last]}/out"].astype(np.int64) @ weights(packed, last).astype(np.int64)
    assert segment.scale is not None
    return {
        f"{name}/in": seen[f"{neuron[name]}/in"], f"{name}/spikes": seen[f"{neuron[name]}/out"],
        f"{name}/sums": sums.astype(np.int32), f"{name}/scale": segment.scale,
    }  # fmt: skip


def _describe(segment: Segment) -> dict[str, Any]:
    nodes = {name: type(node).__name__ for name, node in segment.graph.nodes.items()}
    return {
        "name": segment.name, "matrices": list(segment.matrices), "nodes": nodes,
        "host_before": segment.before, "host_after": segment.after,
    }  # fmt: skip


def _manifest(
    model: SpikeGPT, segments: list[dict[str, Any]], dialect: str, uniform: bool, nir_version: str
) -> dict[str, Any]:
    table = sites(model.config)
    inside = {name for segment in segments for name in segment["matrices"]}
    on_chip = sum(site.weights for site in table if site.name in inside)
    total = sum(site.weights for site in table)
    event = model.config.event
    return {
        "version": VERSION, "nir": nir_version, "dialect": dialect, "equation": DIALECTS[dialect], "dt": DT, "uniform": uniform,
        "config": model.config.to_dict(),
        "event": None if event is None else f"levels {event.levels}, smallest {event.smallest}, signed {event.signed}",
        "weights": total, "weights_on_host": total - on_chip, "host_share": round(1 - on_chip / total, 6),
        "order": [segment["name"] for segment in segments], "segments": segments,
    }  # fmt: skip


def _without_reset(path: Path) -> None:
    """Remove `v_reset`, all 0, of which nir before 1.0.6 knows nothing."""
    h5py = importlib.import_module("h5py")

    def strip(group: Any) -> Iterator[None]:
        for key, item in list(group.items()):
            if key == "v_reset":
                if np.any(item[()]):
                    raise UserError(f"{path} resets to something else than 0, which nir 1.0.4 cannot say")
                del group[key]
            elif isinstance(item, h5py.Group):
                yield from strip(item)

    with h5py.File(path, "r+") as file:
        list(strip(file))

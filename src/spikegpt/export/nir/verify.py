"""Does a simulator compute the same? Every spike and sum of an exported directory, compared with its trace."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .nodes import nir_package
from .simulators import simulate
from .write import VERSION


@dataclass(frozen=True)
class Verified:
    """What became of one segment in a simulator."""

    segment: str
    spikes: int
    """Neuron-steps compared."""
    fired: int
    """Of which with a spike in the trace."""
    spikes_wrong: int
    sums: int
    sums_wrong: int


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of an exported directory; UserError where it is none, or of another version."""
    path = directory / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["version"]
        names = [str(segment["name"]) for segment in manifest["segments"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory} is no directory of `spikegpt export nir` ({error})") from None
    if found != VERSION:
        raise UserError(f"{path} has version {found}, this spikegpt reads {VERSION}: export the model again")
    if any("/" in name or "\\" in name for name in names):
        raise UserError(f"{path} names a segment that is no file's name; export the model again")
    return manifest


def verify(directory: Path, simulator: str, *, only: str = "", report: Any = None) -> list[Verified]:
    """Run every segment of `directory` in a simulator; `report(done, total)` is told after each."""
    manifest = read_manifest(directory)
    chosen = [segment for segment in manifest["segments"] if only in segment["name"]]
    if not chosen:
        raise UserError(f"no segment's name contains {only!r}")
    dt, found = manifest["dt"], []
    with np.load(directory / "trace.npz", allow_pickle=False) as arrays:
        for number, segment in enumerate(chosen):
            found.append(_verify(directory, segment, arrays, simulator, dt))
            if report is not None:
                report(number + 1, len(chosen))
    return found


def _verify(directory: Path, segment: dict[str, Any], arrays: Any, simulator: str, dt: float) -> Verified:
    name = segment["name"]
    graph, inputs, spikes = read_graph(directory / f"{name}.nir"), arrays[f"{name}/in"], arrays[f"{name}/spikes"]
    is_event = "event" in graph.nodes
    got = simulate(simulator, _until_event(graph) if is_event else graph, inputs, dt)
    wrong = int(np.count_nonzero(got != spikes))
    if not is_event:
        return Verified(name, spikes.size, int(np.count_nonzero(spikes)), wrong, 0, 0)
    sums = simulate(simulator, graph, inputs, dt)
    sums_wrong = int(np.count_nonzero(sums != arrays[f"{name}/sums"]))
    return Verified(name, spikes.size, int(np.count_nonzero(spikes)), wrong, sums.size, sums_wrong)


def read_graph(path: Path) -> Any:
    """A NIR graph; UserError where the file cannot be read by the nir that is installed."""
    try:
        return nir_package().read(path)
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} cannot be read by this version of nir ({error}); export with --compat") from None


def _until_event(graph: Any) -> Any:
    """The chain up to its first events."""
    nir = nir_package()
    names = ["input", "fan", "units", "event", "output"]
    nodes = {name: graph.nodes[name] for name in names[:-1]}
    nodes["output"] = nir.Output(output_type={"output": np.array(graph.nodes["event"].output_type["output"])})
    return nir.NIRGraph(nodes=nodes, edges=list(pairwise(names)))

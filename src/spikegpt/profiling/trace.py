"""Spikes and membranes of a text on disk, for those who study them: an `.npz`, written in constant memory.

T tokens, n neurons. For a neuron called NAME (`blocks.2.lif1`) the file has `NAME/spikes` [T, n], integers, and, if it
has a memory, `NAME/membrane` [T, n], float32: what it keeps after each token, as in `State`. `tokens` [T] are the ids.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ..data.corpus import Document, read_files
from ..data.encode import encode
from ..errors import UsageError
from ..files import WriteError, write_atomically
from ..model.neurons import LIF, EventNeuron, Neuron
from ..model.protocol import evaluating, tokenizer_of
from ..model.sites import neuron_groups
from ..model.spikegpt import SpikeGPT

_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Trace:
    """What was written."""

    path: Path
    tokens: int
    neurons: tuple[str, ...]
    """Names of the groups of neurons in the file."""

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values under the fields' names."""
        return dataclasses.asdict(self) | {"path": str(self.path), "neurons": list(self.neurons)}


@torch.inference_mode()
def trace(
    model: SpikeGPT,
    texts: str | Iterable[str | Document],
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    chunk: int = 1024,
    force: bool = False,
) -> Trace:
    """Write what the neurons of `layers` do while the model reads the texts, one after another as a single text.

    After a `Document` that ends comes the end of text, as in training and evaluation; after a plain string nothing does.

    layers: blocks to watch; None: all, and the neurons of the embedding and the head. chunk: tokens read at a time.
    UsageError: no such layer, no neurons there, no text, or `out` exists and `force` is not set.
    """
    out = Path(out)
    if out.exists() and not force:
        raise UsageError(f"{out} already exists; choose another name or replace it with --force")
    if out.suffix != ".npz":
        raise UsageError(f"{out}: a trace is written as .npz; name it so")
    neurons, folder = _neurons(model, layers), _folder(out)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{out.name}.") as scratch:
            length = _write(model, neurons, _chunks(model, texts, chunk), Path(scratch), out)
    except OSError as error:
        raise WriteError(out, error) from None
    return Trace(out, length, tuple(neurons))


def _write(model: SpikeGPT, neurons: dict[str, Neuron], chunks: Iterator[np.ndarray], scratch: Path, out: Path) -> int:
    """Write the trace by way of files in `scratch`; the number of tokens read."""
    with ExitStack() as stack:
        columns = _Columns(scratch, stack)
        for name, module in neurons.items():
            handle = module.register_forward_hook(_watch(name, columns))
            stack.callback(handle.remove)
        with evaluating(model):
            state = None
            for ids in chunks:
                columns.append("tokens", ids)
                _, state = model(torch.from_numpy(ids.astype(np.int64))[None].to(model.device), state)
        if not columns.length:
            raise UsageError("there is no text to read")
        write_atomically(out, columns.pack)
        return columns.length


def texts(text: str | None, data: Sequence[Path] | None) -> Iterable[str | Document]:
    """A text, or else the documents of files; UsageError unless exactly one of the two is given."""
    if (text is None) == (not data):
        raise UsageError("give a text to read, or files with --data, and not both")
    return [text] if text is not None else read_files(data or [])


def parse_layers(text: str | None) -> list[int] | None:
    """`0-3` or `0,2,5` as numbers; None stays None."""
    if text is None:
        return None
    try:
        ends = [[int(end) for end in part.split("-", 1)] for part in text.split(",")]
    except ValueError:
        raise UsageError(f"layers {text!r} are not like 0-3 or 0,2,5") from None
    if any(part[0] > part[-1] for part in ends):
        raise UsageError(f"layers {text!r} go backwards; write the lower number first, as 0-3")
    if max(part[-1] for part in ends) >= _MOST_LAYERS:
        raise UsageError(f"layers {text!r} ask for more than a model has")
    return [layer for part in ends for layer in range(part[0], part[-1] + 1)]


class _Columns:
    """Arrays that grow by rows, each in a file of its own; packed into an `.npz` at the end."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._files: dict[str, tuple[IO[bytes], np.dtype, tuple[int, ...]]] = {}
        self.length = 0

    def append(self, name: str, rows: np.ndarray) -> None:
        if name not in self._files:
            file = self._stack.enter_context((self._folder / str(len(self._files))).open("w+b"))
            self._files[name] = file, rows.dtype, rows.shape[1:]
        self._files[name][0].write(np.ascontiguousarray(rows).data)
        if name == "tokens":
            self.length += len(rows)

    def pack(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, (file, dtype, row) in self._files.items():
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as packed:
                    np.lib.format.write_array_header_2_0(packed, header | {"shape": (self.length, *row)})
                    file.seek(0)
                    shutil.copyfileobj(file, packed)


def _folder(out: Path) -> Path:
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out} cannot be written: its folder does not exist; make it first")
    return out.absolute().parent


def _neurons(model: SpikeGPT, layers: Sequence[int] | None) -> dict[str, Neuron]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, Neuron)}
    if layers is not None:
        count = model.config.n_layer
        if wrong := [layer for layer in layers if not 0 <= layer < count]:
            raise UsageError(f"layer {wrong[0]} is not among the model's, 0 to {count - 1}")
        wanted = {group.name for group in neuron_groups(model.config) if group.block in layers}
        found = {name: module for name, module in found.items() if name in wanted}
    if not found:
        raise UsageError("this model has no neurons there (spikes='none'): there is nothing to trace")
    return found


def _chunks(model: SpikeGPT, texts: str | Iterable[str | Document], size: int) -> Iterator[np.ndarray]:
    if size < 1:
        raise UsageError(f"chunk={size} must be above zero")
    for ids in encode([texts] if isinstance(texts, str) else texts, tokenizer_of(model)):
        for start in range(0, len(ids), size):
            yield ids[start : start + size]


def _watch(name: str, columns: _Columns) -> Callable[[Neuron, tuple[Tensor, ...], tuple[Tensor, Tensor | None]], None]:
    def note(neuron: Neuron, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor | None]) -> None:
        x, spikes = inputs[0][0].float().cpu().numpy(), output[0][0].cpu().numpy()
        columns.append(f"{name}/spikes", spikes.astype(np.int8))
        if output[1] is not None:
            columns.append(f"{name}/membrane", _membranes(neuron, x, inputs[1][0].cpu().numpy(), spikes))

    return note


def _membranes(neuron: Neuron, x: np.ndarray, membrane: np.ndarray, spikes: np.ndarray) -> np.ndarray:
    """[T, n] the membrane after each token, from the inputs x [T, n], the membrane before them [n], and the spikes."""
    kept = np.empty_like(x)
    if isinstance(neuron, LIF):
        for t, fired in enumerate(spikes):
            membrane = kept[t] = (1 - fired) * (membrane + (x[t] - membrane) / neuron.tau)
        return kept
    assert isinstance(neuron, EventNeuron)
    leak, unit = neuron.leak(), neuron.unit.item()
    assert leak is not None
    share = leak.cpu().numpy()
    for t, fired in enumerate(spikes):
        charged = share * membrane + x[t]
        after = 0 if neuron.config.reset == "hard" else charged - fired * unit
        membrane = kept[t] = np.where(fired == 0, charged, after)
    return kept

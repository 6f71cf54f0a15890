"""The recurrent state: everything the model remembers of the text so far, of constant size.

B batch, C channels. A state is a value: the model takes one and returns the next; nothing is kept inside modules.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..files import write_atomically


class MixState(NamedTuple):
    """What a time mix or a channel mix remembers."""

    shift: Tensor
    """[B, C] its input at the last token (the token shift)."""
    wkv: Tensor | None
    """[B, 3, C] numerator, denominator and max exponent of the WKV average; None in a channel mix."""
    membranes: dict[str, Tensor]
    """[B, n] membranes of the neurons in front of its matrices, by the matrix's name; empty where there are none."""


class BlockState(NamedTuple):
    """What one block remembers."""

    att: MixState
    ffn: MixState
    membranes: dict[str, Tensor]
    """[B, C] membranes of the neurons after the mixes, `lif1` and `lif2`; empty where there are none."""


class State(NamedTuple):
    """What the whole model remembers; a named tuple of `BlockState` that maps, indexes, stacks and saves."""

    blocks: tuple[BlockState, ...]
    membranes: dict[str, Tensor]
    """Outside the blocks: the membrane of the neuron in front of the head, `head_neuron`, if it keeps one; the last tokens
    before the look-up lane of a classifier, `recent`, as floats [B, n]."""

    @property
    def batch_size(self) -> int:
        """B, the number of sequences."""
        return self.blocks[0].att.shift.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> State:
        """A new state with `function` applied to every tensor."""
        return self.from_named({name: function(tensor) for name, tensor in self.named().items()})

    def named(self) -> dict[str, Tensor]:
        """Every tensor by name: `blocks.0.att.shift`, `blocks.0.att.wkv`, `blocks.0.lif1`, ..."""
        return dict(_named(self))

    def replace(self, values: Mapping[str, Tensor]) -> State:
        """A new state with the named tensors replaced; an unknown name or another shape is an error."""
        named = self.named()
        for name, tensor in values.items():
            if name not in named:
                raise UserError(f"the state has no {name!r}; it has {', '.join(list(named)[:4])}, ...")
            if tensor.shape != named[name].shape:
                raise UserError(f"{name} is {list(named[name].shape)}, not {list(tensor.shape)}")
        return self.from_named({**named, **values})

    def detach(self) -> State:
        """The same values, detached from the autograd graph."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device | str) -> State:
        """The same values on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def take(self, rows: Sequence[int] | slice | Tensor) -> State:
        """The given sequences of the batch, as a state of their own."""
        return self.map(lambda tensor: tensor[rows])

    @staticmethod
    def stack(states: Sequence[State]) -> State:
        """One batch made of the sequences of several states, in order."""
        named = [state.named() for state in states]
        return State.from_named({name: torch.cat([other[name] for other in named]) for name in named[0]})

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        """Write the state to a safetensors file, atomically, with `metadata` in its header."""
        data = self.to_bytes(metadata)
        write_atomically(Path(path), lambda staged: staged.write_bytes(data))

    def to_bytes(self, metadata: Mapping[str, str] | None = None) -> bytes:
        """The contents of such a file."""
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in self.named().items()}
        return save(tensors, dict(metadata or {}))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> State:
        """Read a saved state; UserError where the file is none."""
        try:
            data = Path(path).read_bytes()
        except FileNotFoundError:
            raise UserError(f"there is no saved state {path}") from None
        except OSError as error:
            raise UserError(f"{path} is not a saved state: {error}") from None
        return State.from_bytes(data, str(path))[0]

    @staticmethod
    def from_bytes(data: bytes, name: str) -> tuple[State, dict[str, str]]:
        """The state in a file's contents, and the metadata beside it; UserError, with the file's `name`, for others."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            state = State.from_named(load(data))
        except KeyError as error:
            raise UserError(f"{name} is not a saved state: it has no {error}") from None
        except (SafetensorError, ValueError, RuntimeError) as error:
            raise UserError(f"{name} is not a saved state: {error}") from None
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # which `load` has checked
        return state, header.get("__metadata__", {})

    @staticmethod
    def from_named(values: Mapping[str, Tensor]) -> State:
        """The state with these tensors; the inverse of `named`."""

        def below(prefix: str) -> dict[str, Tensor]:
            inside = {name.removeprefix(prefix): tensor for name, tensor in values.items() if name.startswith(prefix)}
            return {name: tensor for name, tensor in inside.items() if "." not in name}

        def mix(prefix: str) -> MixState:
            return MixState(values[f"{prefix}.shift"], values.get(f"{prefix}.wkv"), below(f"{prefix}.neurons."))

        count = len({name.split(".")[1] for name in values if name.startswith("blocks.")})
        blocks = (
            BlockState(mix(f"blocks.{i}.att"), mix(f"blocks.{i}.ffn"), below(f"blocks.{i}.")) for i in range(count)
        )
        return State(tuple(blocks), below(""))


def _named(state: State) -> Iterator[tuple[str, Tensor]]:
    for i, block in enumerate(state.blocks):
        for part, mix in (("att", block.att), ("ffn", block.ffn)):
            yield f"blocks.{i}.{part}.shift", mix.shift
            if mix.wkv is not None:
                yield f"blocks.{i}.{part}.wkv", mix.wkv
            for name, membrane in mix.membranes.items():
                yield f"blocks.{i}.{part}.neurons.{name}", membrane
        for name, membrane in block.membranes.items():
            yield f"blocks.{i}.{name}", membrane
    yield from state.membranes.items()

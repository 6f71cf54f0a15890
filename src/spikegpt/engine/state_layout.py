"""Where each part of a model's state lies in the engine's one row of values.

A `State` made here is a tree of views into such rows [B, size]: handing it back to the engine costs no copy.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import UserError
from ..model.lookup import NONE, RECENT
from ..model.sites import HEAD_NEURON, first_mix, matrices_of, sites
from ..model.state import BlockState, MixState, State


class Layout:
    """The state's tensors in the order of `State.named`, with their places."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32, lowest: float = -1e38) -> None:
        """`lowest` is the largest exponent before any token."""
        assert config.event is not None
        self._config, self._dtype, self._lowest = config, dtype, lowest
        self._remembers = config.event.has_membrane
        self.recent = max(0, config.task.ngrams - 1) if config.task else 0
        """Tokens that the look-up lane keeps, the last values of a row."""
        names = list(self._parts())
        self._widths = [width for _, width in names]
        self.size = sum(self._widths)
        """Values in the state of one sequence."""
        self.offsets: dict[str, int] = {}
        """Where each tensor of the state begins."""
        at = 0
        for name, width in names:
            self.offsets[name] = at
            at += width

    def empty(self, batch_size: int) -> Tensor:
        """Rows [B, size] of the state before any token."""
        rows = torch.zeros(batch_size, self.size, dtype=self._dtype)
        channels = self._config.n_embd
        for name, at in self.offsets.items():
            if name.endswith(".wkv"):
                rows[:, at + 2 * channels : at + 3 * channels] = self._lowest
            elif name == RECENT:
                rows[:, at:] = NONE
        return rows

    def view(self, rows: Tensor) -> State:
        """rows [B, size] as a `State`, without a copy."""
        parts = iter(rows.split(self._widths, dim=1))
        batch, channels = len(rows), self._config.n_embd

        def mix(name: str) -> MixState:
            shift = next(parts)
            wkv = next(parts).view(batch, 3, channels) if name == "att" else None
            matrices = matrices_of(self._config, name) if self._remembers else ()
            return MixState(shift, wkv, {matrix: next(parts) for matrix in matrices})

        layers = range(self._config.n_layer)
        blocks = tuple(BlockState(mix(first_mix(self._config, layer)), mix("ffn"), {}) for layer in layers)
        outside = [name for name, there in ((HEAD_NEURON, self._remembers), (RECENT, self.recent)) if there]
        return State(blocks, {name: next(parts) for name in outside})

    def rows(self, state: State) -> Tensor:
        """A new copy [B, size] of any state of this model; UserError for one of another model, or with NaN in it."""
        named = state.named()
        if set(named) != set(self.offsets):
            raise UserError("this state is of another model; begin without one, or load the model that wrote it")
        if any(named[name].is_floating_point() != self._dtype.is_floating_point for name in self.offsets):
            raise UserError(
                "this state is of another engine: floats and integers are not each other's; begin without one"
            )
        parts = [named[name].detach().to("cpu", self._dtype).flatten(1) for name in self.offsets]
        if [part.shape[1] for part in parts] != self._widths:
            raise UserError("this state is of a model of another width; load the model that wrote it")
        rows = torch.cat(parts, dim=1)
        if not rows.isfinite().all():
            name = next(name for name, part in zip(self.offsets, parts, strict=True) if not part.isfinite().all())
            raise UserError(f"the state has a value that is infinite or not a number in {name}; begin without it")
        return rows

    def _parts(self) -> Iterator[tuple[str, int]]:
        channels = self._config.n_embd
        table = sites(self._config) if self._remembers else ()
        for layer in range(self._config.n_layer):
            for part, mix in (("att", first_mix(self._config, layer)), ("ffn", "ffn")):
                yield f"blocks.{layer}.{part}.shift", channels
                if mix == "att":
                    yield f"blocks.{layer}.{part}.wkv", 3 * channels
                for site in table:
                    if site.mix == f"blocks.{layer}.{mix}":
                        yield f"blocks.{layer}.{part}.neurons.{site.matrix}", site.inputs
        if self._remembers:
            yield HEAD_NEURON, channels
        if self.recent:
            yield RECENT, self.recent

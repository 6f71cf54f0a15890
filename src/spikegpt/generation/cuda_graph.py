"""Decoding on a GPU without launch overhead: one token of every sequence as a CUDA graph. B batch, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.spikegpt import SpikeGPT
from ..model.state import State


class DecodingGraph:
    """`logits = graph(ids)` with ids [B] and logits [B, V]: a step of the model that is recorded once and replayed.

    The state lives in the graph; `load` puts one there, `state` is the newest. Record under the autocast to decode
    with. Logits are overwritten by the next step.
    """

    def __init__(self, model: SpikeGPT, batch_size: int) -> None:
        device = model.ln_out.weight.device
        self._ids = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
        fresh = model.init_state(batch_size)
        self.state: State = fresh.map(torch.clone)
        with torch.no_grad():
            aside = torch.cuda.Stream(device)
            aside.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(aside):  # kernels are compiled and workspaces made before anything is recorded
                for _ in range(3):
                    model(self._ids, self.state)
            torch.cuda.current_stream(device).wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                logits, after = model(self._ids, self.state)
                self.logits = logits[:, -1]
                self._copy(after)
        self.load(fresh)

    def load(self, state: State) -> None:
        """Continue from `state`."""
        with torch.no_grad():
            self._copy(state)

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits [B, V] after ids [B], the next token of every sequence."""
        self._ids.copy_(ids.unsqueeze(1))
        self._graph.replay()
        return self.logits

    def _copy(self, state: State) -> None:
        for mine, new in zip(self.state.named().values(), state.named().values(), strict=True):
            mine.copy_(new)

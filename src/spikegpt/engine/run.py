"""Running a packed model with float32 between its products, which are integers: the states are a `SpikeGPT`'s."""

from __future__ import annotations

import os
from pathlib import Path

from .. import checkpoint
from ..model.spikegpt import SpikeGPT
from ..tokenizer import Tokenizer
from .base import MISSING as MISSING
from .base import EngineModel
from .integers import IntegerModel
from .lookup import IntegerLookup
from .packed import is_packed, read
from .plan import prepared
from .state_layout import Layout


class EventModel(EngineModel):
    """A packed model on its engine: `logits, state = model(ids, state)` as in `SpikeGPT`.

    `threads` is fixed at the start, for weights are laid out for it (None: as many as are useful); results do not depend on
    it. Several callers may share an engine; their calls are serialised.
    """

    def __init__(
        self, packed: IntegerModel, tokenizer: Tokenizer | None = None, *, threads: int | None = None, isa: str = ""
    ) -> None:
        super().__init__(packed.config, packed.bits, tokenizer, Layout(packed.config))
        assert packed.config.event is not None
        if packed.config.task is not None and packed.config.task.ngrams:
            self._lookup = IntegerLookup(packed)
        self._start("Engine", prepared(packed), threads, isa, hard=packed.config.event.reset == "hard")

    @staticmethod
    def of(model: SpikeGPT, *, bits: int = 8, threads: int | None = None, isa: str = "") -> EventModel:
        """The engine for a float model in memory."""
        return EventModel(IntegerModel.of(model, bits), model.tokenizer, threads=threads, isa=isa)

    @staticmethod
    def load(directory: str | os.PathLike[str], *, threads: int | None = None) -> EventModel:
        """The engine for a packed model's directory, or for a float model's, which is packed to 8 bits in memory."""
        path = Path(directory)
        if is_packed(path):
            return EventModel(*read(path), threads=threads)
        return EventModel.of(checkpoint.load_model(checkpoint.resolve(path)), threads=threads)

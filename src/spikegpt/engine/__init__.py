"""The event-driven engine: a `spikes="before"` model in small integers, where a silent neuron costs nothing.

`pack` writes such a model, `EventModel` runs it: called like a `SpikeGPT`, with the same states. `FixedEventModel` does
without any float (see `fixed`).
"""

from .base import EngineModel, Stream
from .fixed.run import FixedEventModel
from .packed import pack
from .run import EventModel

__all__ = ["EngineModel", "EventModel", "FixedEventModel", "Stream", "pack"]

"""Counting the events of an engine's calls. Counters belong to a call: callers that share an engine do not interfere."""

from __future__ import annotations

from contextvars import ContextVar
from types import TracebackType
from typing import Any

import numpy as np

from ..model.meter import LayerActivity, SiteCounts


class EventMeter:
    """Counts the events of this thread's calls inside a `with` block, like `meter.SpikeMeter`. Meters may be nested."""

    def __init__(self, engine: Any, neurons: bool) -> None:
        self._engine, self._neurons = engine, neurons
        self._counters = engine.counters(neurons)
        self._outer: Any = None

    def __enter__(self) -> EventMeter:
        outer = (meter._neurons for meter in _METERS.get() if meter._engine is self._engine)
        self._neurons = self._neurons or any(outer)  # an outer meter's neurons are counted here too
        self._counters = self._engine.counters(self._neurons)
        self._outer = _METERS.set((self, *_METERS.get()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _METERS.reset(self._outer)
        for meter in _METERS.get():
            if meter._engine is self._engine:
                meter._counters.add(self._counters)
                return

    def counts(self) -> list[SiteCounts]:
        """One row per matrix, in the order they run."""
        return [SiteCounts(**row) for row in self._engine.counts(self._counters)]

    @property
    def rate(self) -> float:
        """Fraction of all neuron-steps with an event."""
        counts = self.counts()
        steps = sum(site.steps * site.inputs for site in counts)
        return sum(site.active for site in counts) / steps if steps else 0.0

    @property
    def activity(self) -> float:
        """Fraction of the weights that were read: events x outputs over inputs x outputs."""
        counts = self.counts()
        weights = sum(site.steps * site.inputs * site.outputs for site in counts)
        return sum(site.active * site.outputs for site in counts) / weights if weights else 0.0

    def layers(self) -> list[LayerActivity]:
        """One row per layer of neurons; needs each neuron's own count."""
        return [
            LayerActivity(
                name=site.name,
                neurons=site.inputs,
                rate=site.active / (site.steps * site.inputs),
                dead=int(np.count_nonzero(site.fired == 0)) / site.inputs,
                saturated=int(np.count_nonzero(site.fired == site.steps)) / site.inputs,
            )
            for site in self.counts()
            if site.fired is not None and site.steps
        ]


def counters_of(engine: Any) -> Any:
    """The counters of the innermost meter of this engine in this thread; None if nothing is counted."""
    meters = _METERS.get()
    if not meters:  # at once: this is asked for every token
        return None
    return next((meter._counters for meter in meters if meter._engine is engine), None)


_METERS: ContextVar[tuple[EventMeter, ...]] = ContextVar("meters", default=())

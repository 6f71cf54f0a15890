"""Counters in Prometheus's format, read from what the workers count when somebody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """A registry of this server's own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.service: Any = None
        """The `Service` whose workers count; None: the model is loading."""
        self.requests: Counter[tuple[str, str]] = Counter()
        self.first_token = Histogram(
            "spikegpt_time_to_first_token_seconds", "From a request to its first text.", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.token = Histogram(
            "spikegpt_time_per_token_seconds", "Of a text, after its first token.", registry=self.registry,
            buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
        )  # fmt: skip
        self.registry.register(self)  # pyright: ignore[reportArgumentType]

    def text(self) -> bytes:
        """All of them, in the text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """What the workers count; called by the registry."""
        requests = CounterMetricFamily("spikegpt_requests", "Requests by path and status.", labels=["path", "status"])
        for (path, status), count in sorted(self.requests.items()):
            requests.add_metric([path, status], count)
        yield requests
        service = self.service
        if service is None:
            return
        workers = service.workers
        tallies = [worker.tally for worker in workers]
        for name, text, field in _COUNTERS:
            yield CounterMetricFamily(f"spikegpt_{name}", text, value=sum(getattr(tally, field) for tally in tallies))
        running = sum(worker.running for worker in workers)
        yield GaugeMetricFamily("spikegpt_streams_running", "Texts that are read or written.", value=running)
        waiting = max(0, sum(worker.load for worker in workers) - running)
        yield GaugeMetricFamily("spikegpt_streams_waiting", "Texts that wait to begin.", value=waiting)
        sessions, size = service.store.usage()
        yield GaugeMetricFamily("spikegpt_sessions", "Sessions that are kept.", value=sessions)
        yield GaugeMetricFamily("spikegpt_session_bytes", "Bytes of sessions.", value=size)
        yield GaugeMetricFamily("spikegpt_prefix_states", "States kept for prompts.", value=len(service.cache))
        yield from _activity([site for worker in workers for site in worker.meter.counts()])


_COUNTERS = (
    ("turns", "Turns of all workers.", "turns"),
    ("turn_seconds", "Seconds spent in turns.", "seconds"),
    ("prompt_tokens", "Tokens of prompts that were read.", "read"),
    ("completion_tokens", "Tokens that were written.", "written"),
    ("cached_tokens", "Tokens of prompts that were not read again.", "cached"),
    ("cancelled", "Texts that were given up.", "cancelled"),
)


def _activity(counts: list[Any]) -> Iterator[Metric]:
    """Events, and the weights that they read; activity is the quotient of the last two."""
    events = sum(site.active for site in counts)
    yield CounterMetricFamily("spikegpt_events", "Neurons that fired, over all tokens.", value=events)
    read = sum(site.active * site.outputs for site in counts)
    yield CounterMetricFamily("spikegpt_weights_read", "Weights that were read.", value=read)
    there = sum(site.steps * site.inputs * site.outputs for site in counts)
    yield CounterMetricFamily("spikegpt_weights_dense", "Weights that a dense model would have read.", value=there)

"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UsageError


class StopFilter:
    """Returns text up to the first stop string, and never a part of one.

    Text that may be the beginning of a stop string is held back until it is known not to be.
    """

    def __init__(self, stop: str | Sequence[str]) -> None:
        self._stop = [stop] if isinstance(stop, str) else list(stop)
        if "" in self._stop:
            raise UsageError("a stop string must not be empty")
        self.held = ""
        """Text that may be the beginning of a stop string."""
        self.matched: str | None = None
        """The stop string that was found."""

    def push(self, text: str) -> str:
        """The text that is certain after more text was added; nothing once a stop string was found."""
        if self.matched is not None:
            return ""
        if not self._stop:
            text, self.held = self.held + text, ""
            return text
        self.held += text
        found = [(at, -len(stop), stop) for stop in self._stop if (at := self.held.find(stop)) >= 0]
        if found:
            at, _, self.matched = min(found)
            return self._release(at)
        return self._release(len(self.held) - self._beginning())

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        return self._release(len(self.held))

    def _release(self, count: int) -> str:
        out, self.held = self.held[:count], self.held[count:]
        return out

    def _beginning(self) -> int:
        """Length of the longest suffix of the held text that is a prefix of a stop string."""
        longest = min(len(self.held), max(map(len, self._stop), default=1) - 1)
        ends = (n for n in range(longest, 0, -1) if any(stop.startswith(self.held[-n:]) for stop in self._stop))
        return next(ends, 0)

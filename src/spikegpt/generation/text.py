"""One text while it is generated: what was read, what was chosen, what may be shown."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UsageError
from ..model.state import State
from ..tokenizer import StreamDecoder, Tokenizer
from .sampling import Sampling
from .session import Session
from .stopping import StopFilter


class Text:
    """Counts and decodes the tokens of one text; knows when it ends.

    continues: the text will be saved as a session, so that what is incomplete when the token limit is reached (half a
    character, the beginning of a stop string) is kept for the next part instead of being shown as it is.
    ignore_end: the end-of-text token is a token like others.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_tokens: int,
        stop: str | Sequence[str],
        *,
        session: Session | None = None,
        continues: bool = False,
        ignore_end: bool = False,
    ) -> None:
        if max_tokens < 0:
            raise UsageError(f"max_tokens={max_tokens} must not be negative")
        self.pending: int | None = None
        """The last token, which the state has not read yet; None before the first."""
        self.prompt_tokens = 0
        """Tokens read before the first was chosen, the pending one of a session among them."""
        self._shown: list[str] = []
        self.tokens = 0
        """Tokens chosen so far."""
        self.reason = None if max_tokens else "length"
        """Why it ended: length, stop (a stop string) or end (the end-of-text token); None while it continues."""
        self.counts: dict[int, int] = {}
        """How often each token of the text was chosen: 0 for one that was only read."""
        self._left, self._end, self._continues = max_tokens, None if ignore_end else tokenizer.eos_id, continues
        self._decoder, self._filter, self._opening = StreamDecoder(tokenizer), StopFilter(stop), ""
        if session is not None:
            self._resume(session)

    def _resume(self, session: Session) -> None:
        if session.pending is not None:
            self.read([session.pending])
        self.counts.update(session.counts)
        self._decoder.pending = session.undecoded
        self._filter.held = session.held

    @property
    def unread(self) -> list[int]:
        """The pending token, if there is one: what the state has not read."""
        return [] if self.pending is None else [self.pending]

    def read(self, ids: Sequence[int]) -> None:
        """Take note of tokens of the prompt, at least one."""
        # What the last part left incomplete cannot be completed by a prompt: it is shown before what follows.
        self._opening += self._filter.flush() + self._decoder.flush()
        for token in ids:
            self.counts.setdefault(token, 0)
        self.prompt_tokens += len(ids)
        self.pending = ids[-1]

    def advance(self, chosen: int) -> str:
        """Take the token that was chosen; the text that is now certain, often none."""
        self.pending = chosen
        self.counts[chosen] = self.counts.get(chosen, 0) + 1
        self.tokens += 1
        self._left -= 1
        if chosen == self._end:
            self.reason, piece = "end", self._filter.push(self._decoder.flush())
        else:
            piece = self._filter.push(self._decoder.push(chosen))
            self.reason = None if self._left else "length"
        if self._filter.matched is not None:
            self.reason = "stop"
        return self._show(piece) + (self.finish() if self.reason else "")

    def finish(self) -> str:
        """What was incomplete when the text ended, as it is; nothing if it is kept for the next part."""
        if self._continues and self.reason == "length":
            return ""
        piece = self._filter.push(self._decoder.flush())
        return self._show(piece if self.stop is not None else piece + self._filter.flush())

    def _show(self, piece: str) -> str:
        piece, self._opening = self._opening + piece, ""
        self._shown.append(piece)
        return piece

    @property
    def written(self) -> str:
        """Everything generated so far that is certain."""
        self._shown = ["".join(self._shown)]
        return self._shown[0]

    @property
    def stop(self) -> str | None:
        """The stop string that ended it."""
        return self._filter.matched

    def session(self, state: State, sampling: Sampling) -> Session:
        """Where the text is left, `state` having read all of it but the pending token."""
        held = "" if self.stop is not None else self._filter.held
        seed = sampling.seed_after(self.tokens)
        return Session(state, self.pending, dict(self.counts), self._decoder.pending, self._opening + held, seed)

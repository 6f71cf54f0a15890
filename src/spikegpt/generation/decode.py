"""Generating text: read the prompt, then choose one token at a time; text is returned as soon as it is certain.

V vocabulary. The last token of a text is always kept back (`pending`): the state has not read it yet, and reading it
gives the logits of the next one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from ..data.corpus import PIECE, pieces
from ..errors import UsageError
from ..model.protocol import LanguageModel, Streaming, check_predicts_tokens, evaluating, tokenizer_of
from ..model.state import State
from ..tokenizer import Tokenizer
from .sampling import NOT_FINITE, Sampler, Sampling, not_finite
from .session import Session, load_session, save_session
from .text import Text

PREFILL = 512
"""Prompt tokens read at a time, so that a prompt of any length takes constant memory."""

PathLike = str | os.PathLike[str]


def generate(
    model: LanguageModel,
    prompt: str | Iterable[str] = "",
    *,
    max_tokens: int = 256,
    stop: str | Sequence[str] = (),
    state: PathLike | None = None,
    save_state: PathLike | None = None,
    **sampling: Any,
) -> Generation:
    """The model's continuation of `prompt`, as an iterator of pieces of text.

    Ends after `max_tokens` tokens, before the first of the `stop` strings, or at the tokenizer's end of text. The other
    settings are those of `Sampling`: temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
    frequency_penalty, logit_bias, seed. A prompt in parts (any iterable of strings) is read as it comes.
    `state` is a session's file to continue, with or without more prompt; `save_state` one to write at the end. A text
    written in parts, each continuing the session of the one before, is the text written at once: half a character or
    the beginning of a stop string at the end of a part is returned by the next, and a seed is continued unless another
    is given. Without prompt and state a new text begins.
    """
    if save_state is not None and not Path(save_state).absolute().parent.is_dir():
        raise UsageError(f"{save_state} cannot be written: its folder does not exist; make it first")
    if save_state is not None and Path(save_state).is_dir():
        raise UsageError(f"{save_state} is a folder; name a file for the state")
    settings = Sampling(**sampling)
    check_predicts_tokens(model)
    tokenizer = tokenizer_of(model)
    session = Session(model.init_state(1)) if state is None else load_session(state, model)
    settings = settings.continuing(session.seed)
    continues = save_state is not None
    text = Text(tokenizer, max_tokens, stop, session=session, continues=continues)
    return Generation(model, text, settings, prompt_ids(tokenizer, prompt), session.state, save_state)


def generate_batch(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    max_tokens: int = 256,
    seed: int | Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
    **sampling: Any,
) -> list[str]:
    """The continuation of each prompt, decoded together; settings as in `generate`.

    Each has a random stream of its own and gives what it gives alone with that seed. A list has one seed for each
    prompt, which is the way to several texts from one prompt.
    """
    texts = complete(model, prompts, max_tokens=max_tokens, seed=seed, stop=stop, **sampling)
    return [text.written for text in texts]


@torch.inference_mode()
def complete(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    max_tokens: int = 256,
    seed: int | Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
    **sampling: Any,
) -> list[Text]:
    """As `generate_batch`, but returns each `Text` with its token counts and the reason why it ended."""
    seeds = [seed] * len(prompts) if seed is None or isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise UsageError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed, or one for each prompt")
    check_predicts_tokens(model)
    tokenizer = tokenizer_of(model)
    settings = [Sampling(**sampling, seed=own_seed) for own_seed in seeds]
    texts = [Text(tokenizer, max_tokens, stop) for _ in prompts]
    with evaluating(model):
        # Each prompt is read by itself: no padding, so no result depends on the length of the others.
        states = [
            read_prompt(model, text, prompt_ids(tokenizer, prompt), model.init_state(1))
            for text, prompt in zip(texts, prompts, strict=True)
        ]
        if texts:
            writer = _writer(model, texts, settings, states)
            while rows := [row for row, text in enumerate(texts) if text.reason is None]:
                for row, token in zip(rows, writer.next(rows), strict=True):
                    texts[row].advance(token)
    return texts


class Generation(Iterator[str]):
    """Iterator over the pieces of one text as they are generated, with its counts so far.

    No context is open between two pieces: an iteration may be abandoned at any time, even by the exit of the program.
    """

    def __init__(
        self,
        model: LanguageModel,
        text: Text,
        settings: Sampling,
        prompt: Iterator[list[int]],
        state: State,
        save_to: PathLike | None,
    ) -> None:
        self._model, self._text, self._settings, self._prompt = model, text, settings, prompt
        self._begun, self._save_to = state, save_to
        self._writer: Writer | None = None
        self._closed = False

    def __next__(self) -> str:
        if self._closed:
            raise StopIteration
        with torch.inference_mode(), evaluating(self._model):
            if self._writer is None:
                state = read_prompt(self._model, self._text, self._prompt, self._begun)
                self._writer = _writer(self._model, [self._text], [self._settings], [state])
            while self._text.reason is None:
                if piece := self._text.advance(self._writer.next([0])[0]):
                    return piece
        self.close()
        if self._save_to is not None:
            save_session(self._save_to, self._text.session(self._writer.state(0), self._settings))
        if rest := self._text.finish():
            return rest
        raise StopIteration

    def close(self) -> None:
        """Stop early; no session is saved."""
        self._closed = True

    @property
    def text(self) -> str:
        """Everything generated so far, without the prompt."""
        return self._text.written

    @property
    def tokens(self) -> int:
        """Tokens chosen so far."""
        return self._text.tokens

    @property
    def prompt_tokens(self) -> int:
        """Tokens read before the first was chosen."""
        return self._text.prompt_tokens

    @property
    def reason(self) -> str | None:
        """Why it ended: length, stop or end; None while it continues."""
        return self._text.reason


class Writer(Protocol):
    """Chooses the tokens of texts whose prompts were read."""

    def next(self, rows: list[int]) -> list[int]:
        """The next token of each of these texts; texts that are left out have ended."""
        ...

    def state(self, row: int) -> State:
        """A text's state after all that was read."""
        ...


@runtime_checkable
class TakesTurns(LanguageModel, Protocol):
    """A model that advances many texts in one call and chooses their tokens itself, as the integer engine does."""

    def sequence(
        self, ids: Sequence[int], state: State | None = None, *, sampling: Sampling, counts: Mapping[int, int]
    ) -> Any:
        """A text from `state` on with `ids` still to be read."""
        ...

    def advance(self, sequences: Sequence[Any]) -> list[int]:
        """One turn of each: the tokens chosen."""
        ...


class _LogitsWriter:
    """Texts on a model that returns logits: one batch, from which finished texts are removed."""

    def __init__(self, model: LanguageModel, texts: list[Text], settings: list[Sampling], states: list[State]) -> None:
        self._model, self._texts, self._device = model, texts, model.device
        self._rows = list(range(len(texts)))
        self._state = states[0] if len(texts) == 1 else State.stack(states)
        tokens, rows = tokenizer_of(model).vocab_size, model.config.vocab_size
        self._samplers = [Sampler(each.within(tokens, rows), rows) for each in settings]
        for sampler, text in zip(self._samplers, texts, strict=True):
            sampler.restore(text.counts)

    def next(self, rows: list[int]) -> list[int]:
        """The next token of each of these texts; texts that are left out have ended."""
        if len(rows) < len(self._rows):
            self._state = self._state.take([self._rows.index(row) for row in rows])
            self._rows = rows
        ids = torch.tensor([[self._texts[row].pending] for row in rows], device=self._device)
        logits, self._state = self._model(ids, self._state)
        scores = logits[:, -1].float().cpu()
        return [self._samplers[row].choose(scores[at]) for at, row in enumerate(rows)]

    def state(self, row: int) -> State:
        """A text's state after all that was read, the last batch that it was in."""
        return self._state if len(self._rows) == 1 else self._state.take([self._rows.index(row)])


class _TurnsWriter:
    """Texts on an engine that samples by itself."""

    def __init__(self, model: TakesTurns, texts: list[Text], settings: list[Sampling], states: list[State]) -> None:
        self._model = model
        self._sequences = [
            model.sequence(text.unread, state, sampling=each, counts=text.counts)
            for text, each, state in zip(texts, settings, states, strict=True)
        ]

    def next(self, rows: list[int]) -> list[int]:
        """The next token of each of these texts."""
        tokens = self._model.advance([self._sequences[row] for row in rows])
        if NOT_FINITE in tokens:
            raise not_finite()
        return tokens

    def state(self, row: int) -> State:
        """A copy of a text's state after all that was read."""
        return self._sequences[row].state()


def _writer(model: LanguageModel, texts: list[Text], settings: list[Sampling], states: list[State]) -> Writer:
    """What chooses the tokens of texts whose prompts were read."""
    if isinstance(model, TakesTurns):
        return _TurnsWriter(model, texts, settings, states)
    return _LogitsWriter(model, texts, settings, states)


def read_prompt(model: LanguageModel, text: Text, prompt: Iterable[list[int]], state: State) -> State:
    """Read a prompt's ids as they come; the state after all tokens of the text but the last, which is its `pending`."""
    for ids in prompt:
        unread = text.unread
        text.read(ids)
        state = prefill(model, [*unread, *ids[:-1]], state)
    if text.pending is None:
        text.read([tokenizer_of(model).start_id])
    return state


def prefill(model: LanguageModel, ids: Sequence[int], state: State) -> State:
    """The state of one text after reading `ids`."""
    if isinstance(model, Streaming):  # an engine that takes any length at once
        return model.read(torch.tensor([ids], dtype=torch.int64), state) if ids else state
    device = model.device
    for start in range(0, len(ids), PREFILL):
        state = model.read(torch.tensor([ids[start : start + PREFILL]], device=device), state)
    return state


def prompt_ids(tokenizer: Tokenizer, prompt: str | Iterable[str]) -> Iterator[list[int]]:
    """The ids of a prompt in parts of at most `PIECE` characters, none of them empty."""
    for piece in pieces(prompt, PIECE):
        if ids := tokenizer.encode(piece).tolist():
            yield ids

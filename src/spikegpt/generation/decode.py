"""Generating text: read the prompt, then choose one token at a time; text is returned as soon as it is certain.

V vocabulary. The last token of a text is always kept back (`pending`): the state has not read it yet, and reading it
gives the logits of the next one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.corpus import PIECE, pieces
from ..errors import UsageError
from ..evaluation import device_of, evaluating, tokenizer_of
from ..model.state import State
from ..tokenizer import Tokenizer
from .sampling import make_sampler
from .session import Session, load_session, save_session
from .text import Text

PREFILL = 512
"""Prompt tokens read at a time, so that a prompt of any length takes constant memory."""

PathLike = str | os.PathLike[str]


def generate(
    model: Any,
    prompt: str | Iterable[str] = "",
    *,
    max_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    state: PathLike | None = None,
    save_state: PathLike | None = None,
) -> Generation:
    """The model's continuation of `prompt`, as an iterator of pieces of text.

    Ends after `max_tokens` tokens, before the first of the `stop` strings, or at the tokenizer's end of text; the
    settings in between are those of `make_sampler`. A prompt in parts (any iterable of strings) is read as it comes.
    `state` is a session's file to continue, with or without more prompt; `save_state` one to write at the end. A text
    written in parts, each continuing the session of the one before, is the text written at once: half a character or
    the beginning of a stop string at the end of a part is returned by the next. Without prompt and state a new text
    begins.
    """
    if save_state is not None and not Path(save_state).absolute().parent.is_dir():
        raise UsageError(f"{save_state} cannot be written: its folder does not exist; make it first")
    if save_state is not None and Path(save_state).is_dir():
        raise UsageError(f"{save_state} is a folder; name a file for the state")
    sampler = make_sampler(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    tokenizer = tokenizer_of(model)
    session = Session(model.init_state(1)) if state is None else load_session(state, model)
    continues = save_state is not None
    text = Text(tokenizer, model.config.vocab_size, sampler, max_tokens, stop, session=session, continues=continues)
    return Generation(model, text, _prompt_ids(tokenizer, prompt), session.state, save_state)


def generate_batch(
    model: Any,
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
    model: Any,
    prompts: Sequence[str],
    *,
    max_tokens: int = 256,
    seed: int | Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
    **sampling: Any,
) -> list[Text]:
    """As `generate_batch`, with all that is known of each text."""
    seeds = [seed] * len(prompts) if seed is None or isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise UsageError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed, or one for each prompt")
    tokenizer = tokenizer_of(model)
    texts, states = [], []
    with evaluating(model):
        for prompt, own_seed in zip(prompts, seeds, strict=True):
            sampler = make_sampler(**sampling, seed=own_seed)
            text = Text(tokenizer, model.config.vocab_size, sampler, max_tokens, stop)
            # Each prompt is read by itself: no padding, so nothing depends on how long its neighbours are.
            states.append(read_prompt(model, text, _prompt_ids(tokenizer, prompt), model.init_state(1)))
            texts.append(text)
        if len(texts) == 1:
            _decode_alone(model, texts[0], states[0])
        elif texts:
            _decode_together(model, texts, State.stack(states))
    return texts


class Generation(Iterator[str]):
    """Pieces of one text as they are generated, and what is known of it so far.

    Nothing is open between two pieces: an iteration may be given up at any time, also by the end of the program.
    """

    def __init__(
        self, model: Any, text: Text, prompt: Iterator[list[int]], state: State, save_to: PathLike | None
    ) -> None:
        self._model, self._text, self._prompt = model, text, prompt
        self._begun, self._save_to = state, save_to
        self._steps: Any = None
        self._closed = False

    def __next__(self) -> str:
        if self._closed:
            raise StopIteration
        with torch.inference_mode(), evaluating(self._model):
            if self._steps is None:
                state = read_prompt(self._model, self._text, self._prompt, self._begun)
                self._steps = _steps(self._model, state)
            while self._text.reason is None:
                if piece := _advance(self._steps, self._text):
                    return piece
        self.close()
        if self._save_to is not None:
            save_session(self._save_to, self._text.session(self._steps.state()))
        if rest := self._text.finish():
            return rest
        raise StopIteration

    def close(self) -> None:
        """End it early; nothing is saved."""
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


class _Steps:
    """One text read token by token by a model that has no `stream` of its own."""

    def __init__(self, model: Any, state: State) -> None:
        self._model, self._state, self._device = model, state, device_of(model)

    def step(self, token: int) -> Tensor:
        """Read one token; logits [V] of the next, on the CPU."""
        logits, self._state = self._model(torch.tensor([[token]], device=self._device), self._state)
        return logits[0, -1].float().cpu()

    def state(self) -> State:
        """After all that was read."""
        return self._state


def _steps(model: Any, state: State) -> Any:
    return model.stream(state) if hasattr(model, "stream") else _Steps(model, state)


def _advance(steps: Any, text: Text) -> str:
    """Read the pending token and choose the next; the text that is now certain."""
    assert text.pending is not None
    scores = steps.step(text.pending)
    with contextlib.nullcontext() if isinstance(steps, _Steps) else _one_thread():
        return text.advance(scores)


def _decode_alone(model: Any, text: Text, state: State) -> None:
    """Generate one text to its end."""
    steps = _steps(model, state)
    while text.reason is None:
        _advance(steps, text)


def _decode_together(model: Any, texts: list[Text], state: State) -> None:
    """Generate every text to its end, in one batch that shrinks as they end."""
    device = device_of(model)
    while rows := [row for row, text in enumerate(texts) if text.reason is None]:
        if len(rows) < len(texts):
            texts, state = [texts[row] for row in rows], state.take(rows)
        logits, state = model(torch.tensor([[text.pending] for text in texts], device=device), state)
        for text, scores in zip(texts, logits[:, -1].float().cpu(), strict=True):
            text.advance(scores)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread: its others, which go on spinning after each small operation, would slow the engine's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def read_prompt(model: Any, text: Text, prompt: Iterable[list[int]], state: State) -> State:
    """Read a prompt's ids as they come; the state after all tokens of the text but the last, which is its `pending`."""
    for ids in prompt:
        unread = [] if text.pending is None else [text.pending]
        text.read(ids)
        state = prefill(model, [*unread, *ids[:-1]], state)
    if text.pending is None:
        text.read([tokenizer_of(model).start_id])
    return state


def prefill(model: Any, ids: Sequence[int], state: State) -> State:
    """The state of one text after reading `ids`."""
    if hasattr(model, "stream"):  # an engine that takes any length at once
        return model.read(ids, state)
    device = device_of(model)
    for start in range(0, len(ids), PREFILL):
        state = model.read(torch.tensor([ids[start : start + PREFILL]], device=device), state)
    return state


def _prompt_ids(tokenizer: Tokenizer, prompt: str | Iterable[str]) -> Iterator[list[int]]:
    """The ids of a prompt in parts of at most `PIECE` characters, none of them empty."""
    for piece in pieces(prompt, PIECE):
        if ids := tokenizer.encode(piece).tolist():
            yield ids

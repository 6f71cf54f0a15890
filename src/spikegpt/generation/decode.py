"""Writing text: read the prompt, then one token at a time, out as valid UTF-8 as soon as it is certain.

V vocabulary. The last token of a text is always kept back (`pending`): the state has not read it yet, and reading it
gives the logits of the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError, UserError
from ..evaluation import device_of, evaluating, tokenizer_of
from ..model.state import State
from ..tokenizer import StreamDecoder, Tokenizer
from .sampling import Sampler, make_sampler
from .stopping import StopFilter

PREFILL = 512
"""Prompt tokens read at a time, so that a prompt of any length takes constant memory."""

PathLike = str | os.PathLike[str]


def generate(
    model: Any,
    prompt: str = "",
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
    settings in between are those of `make_sampler`. `state` is a file to go on from, with or without more prompt;
    `save_state` one to write at the end, which remembers all that was read and written, a stop string included.
    Without prompt and state a new text begins.
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
    begun, pending = (model.init_state(1), []) if state is None else load_session(state, model)
    ids = pending + _encode(tokenizer, prompt) or [start_id(tokenizer)]
    text = Text(tokenizer, model.config.vocab_size, ids, sampler, max_tokens, stop)
    return Generation(model, text, begun, save_state)


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
            ids = _encode(tokenizer, prompt) or [start_id(tokenizer)]
            sampler = make_sampler(**sampling, seed=own_seed)
            texts.append(Text(tokenizer, model.config.vocab_size, ids, sampler, max_tokens, stop))
            # Each prompt is read by itself: no padding, so nothing depends on how long its neighbours are.
            states.append(prefill(model, ids[:-1], model.init_state(1)))
        if texts:
            for _ in _decode(model, texts, State.stack(states)):
                pass
    return texts


class Text:
    """One text being written."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        ids: list[int],
        sampler: Sampler,
        max_tokens: int,
        stop: str | Sequence[str],
    ) -> None:
        if max_tokens < 0:
            raise UsageError(f"max_tokens={max_tokens} must not be negative")
        self.ids = ids
        """What was read: the prompt's tokens, after the pending one of a saved state."""
        self.pending = ids[-1]
        self.written = ""
        self.tokens = 0
        self.reason = None if max_tokens else "length"
        """Why it ended: length, stop (a stop string) or end (the tokenizer's end of text); None while it goes on."""
        self._sampler, self._left, self._end = sampler, max_tokens, tokenizer.eos_id
        self._seen = torch.zeros(vocab_size, dtype=torch.bool)
        self._seen[ids] = True
        self._decoder, self._filter = StreamDecoder(tokenizer), StopFilter(stop)

    def advance(self, logits: Tensor) -> str:
        """Choose the next token from logits [V]; the text that is now certain, often none."""
        self.pending = self._sampler(logits, self._seen)
        self._seen[self.pending] = True
        self.tokens += 1
        self._left -= 1
        if self.pending == self._end:
            self.reason, piece = "end", self._filter.push(self._decoder.flush())
        else:
            piece = self._filter.push(self._decoder.push(self.pending))
            if not self._left:
                self.reason = "length"
                piece += self._filter.push(self._decoder.flush())
        if self._filter.stopped:
            self.reason = "stop"
        elif self.reason:
            piece += self._filter.flush()
        self.written += piece
        return piece


class Generation(Iterator[str]):
    """Pieces of one text as they are written, and what is known of it so far."""

    def __init__(self, model: Any, text: Text, state: State, save_to: PathLike | None) -> None:
        self._text = text
        self._pieces = _stream(model, text, state, save_to)

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End it early; nothing is saved."""
        self._pieces.close()

    @property
    def text(self) -> str:
        """Everything written so far, without the prompt."""
        return self._text.written

    @property
    def tokens(self) -> int:
        """Tokens chosen so far."""
        return self._text.tokens

    @property
    def prompt_tokens(self) -> int:
        """Tokens read before the first was chosen."""
        return len(self._text.ids)

    @property
    def reason(self) -> str | None:
        """Why it ended: length, stop or end; None while it goes on."""
        return self._text.reason


# A decorated generator is in inference mode only while it runs, not while its consumer does.
@torch.inference_mode()
def _stream(model: Any, text: Text, state: State, save_to: PathLike | None) -> Generator[str]:
    with evaluating(model):
        state = prefill(model, text.ids[:-1], state)
        state = yield from _decode(model, [text], state)
    if save_to is not None:
        save_session(save_to, state, text.pending)


def _decode(model: Any, texts: list[Text], state: State) -> Generator[str, None, State]:
    """Step until every text has ended, yielding each text's new piece where there is one; returns the last state."""
    if len(texts) == 1 and hasattr(model, "stream"):
        return (yield from _decode_stream(model.stream(state), texts[0]))
    device = device_of(model)
    while rows := [row for row, text in enumerate(texts) if text.reason is None]:
        if len(rows) < len(texts):
            texts, state = [texts[row] for row in rows], state.take(rows)
        logits, state = model(torch.tensor([[text.pending] for text in texts], device=device), state)
        for text, scores in zip(texts, logits[:, -1].float().cpu(), strict=True):
            if piece := text.advance(scores):
                yield piece
    return state


def _decode_stream(stream: Any, text: Text) -> Generator[str, None, State]:
    """The same for one text on an engine that steps in place, with threads of its own."""
    while text.reason is None:
        scores = stream.step(text.pending)
        with _one_thread():
            piece = text.advance(scores)
        if piece:
            yield piece
    return stream.state()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread: its others, which go on spinning after each small operation, would slow the engine's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def prefill(model: Any, ids: Sequence[int], state: State) -> State:
    """The state of one text after reading `ids`."""
    if hasattr(model, "stream"):  # an engine that takes any length at once
        return model.read(ids, state)
    device = device_of(model)
    for start in range(0, len(ids), PREFILL):
        state = model.read(torch.tensor([ids[start : start + PREFILL]], device=device), state)
    return state


def start_id(tokenizer: Tokenizer) -> int:
    """The token that a text begins with where no prompt does: end of text, else a newline, else the first token."""
    if tokenizer.eos_id is not None:
        return tokenizer.eos_id
    try:
        return int(tokenizer.encode("\n")[-1])
    except (UserError, IndexError):
        return 0


def save_session(path: PathLike, state: State, pending: int) -> None:
    """Write a state and the token that it has not read yet."""
    state.save(path, {"pending": json.dumps(pending)})


def load_session(path: PathLike, model: Any) -> tuple[State, list[int]]:
    """The state of one text of `model`, and the tokens it has not read yet (none in a file of `State.save`)."""
    from safetensors import safe_open

    state = State.load(path)
    expected = model.init_state(1).named()
    shapes = {name: tensor.shape for name, tensor in state.named().items()}
    if shapes != {name: tensor.shape for name, tensor in expected.items()}:
        raise UserError(f"{path} is not the state of one text of this model; load the model that wrote it")
    with safe_open(path, "pt") as file:
        pending = (file.metadata() or {}).get("pending")
    return state.to(device_of(model)), [] if pending is None else [json.loads(pending)]


def _encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    return tokenizer.encode(prompt).tolist()

"""Sessions: everything needed to continue a text as if it had never been interrupted. V vocabulary."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import UserError
from ..model.protocol import LanguageModel, tokenizer_of
from ..model.state import State

PathLike = str | os.PathLike[str]

_KEY = "session"


@dataclass(frozen=True)
class Session:
    """Where a text was left: the model's state, and what decoding knows beside it."""

    state: State
    """After every token of the text but `pending`; one sequence."""
    pending: int | None = None
    """The last token of the text, which the state has not read yet; None: no token has been read."""
    counts: Mapping[int, int] = field(default_factory=dict)
    """How often each token of the text so far was chosen, 0 for one that was only read: for the penalties."""
    undecoded: bytes = b""
    """The bytes of an incomplete UTF-8 character at the end of the text."""
    held: str = ""
    """Text that was generated but not returned, because it may be the beginning of a stop string."""
    seed: int | None = None
    """What continues the random numbers of a text that was sampled with a seed; None: it had none."""


def save_session(path: PathLike, session: Session) -> None:
    """Write a session atomically: the state's tensors as safetensors, the rest as JSON in the file's metadata."""
    session.state.save(path, _metadata(session))


def session_to_bytes(session: Session) -> bytes:
    """The contents of such a file."""
    return session.state.to_bytes(_metadata(session))


def load_session(path: PathLike, model: LanguageModel) -> Session:
    """Read a session of `model`; a file of `State.save` is a session without pending token.

    Raises UserError if the file is not a session or not one of this model: names, shapes and dtypes of the state, and
    every value beside it, are checked.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no saved state {path}") from None
    except OSError as error:
        raise UserError(f"{path} is not a saved state: {error}") from None
    return session_from_bytes(data, model, str(path))


def session_from_bytes(data: bytes, model: LanguageModel, name: str) -> Session:
    """The session in a file's contents, checked as by `load_session`; errors call it `name`."""
    state, metadata = State.from_bytes(data, name)
    expected = model.init_state(1).named()
    named = state.named()
    if {name: (t.shape, t.dtype) for name, t in named.items()} != {n: (t.shape, t.dtype) for n, t in expected.items()}:
        raise UserError(f"{name} is not the state of one text of this model; load the model that wrote it")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in named.values()):
        raise UserError(f"{name} holds a state that is not finite (NaN or infinity); begin the text again")
    state = state.to(model.device)
    written = metadata.get(_KEY)
    return Session(state) if written is None else _parse(name, written, state, tokenizer_of(model).vocab_size)


def _metadata(session: Session) -> dict[str, str]:
    values = {
        "pending": session.pending,
        "counts": list(session.counts.items()),
        "undecoded": session.undecoded.hex(),
        "held": session.held,
        "seed": session.seed,
    }
    return {_KEY: json.dumps(values)}


def _parse(path: str, written: str, state: State, vocab_size: int) -> Session:
    try:
        values = json.loads(written)
        pending, held, seed = values["pending"], values["held"], values["seed"]
        counts = {token: times for token, times in values["counts"]}
        undecoded = bytes.fromhex(values["undecoded"])
        tokens = [*counts, *([] if pending is None else [pending])]
        times_are_right = all(type(times) is int and 0 <= times < 2**31 for times in counts.values())
        seed_is_right = seed is None or (type(seed) is int and -(2**63) <= seed < 2**64)
        if not seed_is_right or not isinstance(held, str) or not _is_incomplete(undecoded) or not times_are_right:
            raise ValueError
        held.encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{path} is damaged: what it says beside the state makes no session; begin the text again"
        ) from None
    wrong = [token for token in tokens if type(token) is not int or not 0 <= token < vocab_size]
    if wrong:
        raise UserError(f"{path} has a token {str(wrong[0])[:20]}, outside this model's vocabulary of {vocab_size}")
    return Session(state, pending, counts, undecoded, held, seed)


def _is_incomplete(raw: bytes) -> bool:
    """Whether the bytes are the beginning of one UTF-8 character, or none."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(raw) == "" and len(raw) < 4

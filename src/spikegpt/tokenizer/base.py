"""What every tokenizer can do, and text from a stream of tokens. T tokens, V vocabulary."""

from __future__ import annotations

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import tokenizers

from ..errors import UserError
from ..files import write_atomically

FILE_NAME = "tokenizer.json"


class Tokenizer(ABC):
    """Ids in [0, vocab_size) for text, each standing for some bytes of its UTF-8 form.

    `decode(encode(text)) == text` for every text that `encode` accepts, up to the normal form if the tokenizer composes
    or decomposes characters first (`BPETokenizer`); a text that would lose anything is a UserError.
    """

    kind: ClassVar[Literal["bytes", "chars", "bpe"]]
    vocab_size: int
    """V: the largest id + 1."""
    eos_id: int | None = None
    """The token that ends a text, if there is one; see `special`."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, int32 [T]. UserError: something of the text would be lost; it says what."""

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, on all cores where that pays."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD. An id outside the vocabulary is a UserError."""
        if hasattr(ids, "tolist"):
            ids = ids.tolist()  # pyright: ignore[reportAttributeAccessIssue]
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token stands for; a special token's are its own name, an unused id has none."""
        if not 0 <= id < self.vocab_size:
            raise UserError(f"token {id} is outside the tokenizer's vocabulary of {self.vocab_size}")
        return self._table[id]

    def text_bytes(self, ids: np.ndarray) -> int:
        """Bytes of UTF-8 text that `ids` [T] stand for; the end of a text stands for none."""
        lengths = self._lengths
        ends = 0 if self.eos_id is None else int(np.count_nonzero(ids == self.eos_id)) * int(lengths[self.eos_id])
        return int(lengths[ids].sum()) - ends

    @cached_property
    def start_id(self) -> int:
        """The token after which a text begins: end of text, else a newline, else the first token that is in use."""
        if self.eos_id is not None:
            return self.eos_id
        try:
            return int(self.encode("\n")[-1])
        except (UserError, IndexError):
            return next(id for id, raw in enumerate(self._table) if raw)

    @cached_property
    def _table(self) -> list[bytes]:
        return self._all_bytes()

    @cached_property
    def _lengths(self) -> np.ndarray:
        """Bytes of every token, int64 [V]."""
        return np.array([len(raw) for raw in self._table], np.int64)

    @abstractmethod
    def _all_bytes(self) -> list[bytes]:
        """The bytes of every token, in the order of the ids."""

    @abstractmethod
    def _build(self) -> tokenizers.Tokenizer:
        """The same tokenizer as an object of the `tokenizers` library."""

    def to_json(self) -> str:
        """The contents of `tokenizer.json`."""
        return self._build().to_str(pretty=True)

    def save(self, directory: str | Path) -> Path:
        """Write `directory/tokenizer.json` atomically and return its path."""
        path = Path(directory) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda staged: staged.write_text(self.to_json(), encoding="utf-8"))
        return path

    @cached_property
    def digest(self) -> str:
        """16 hex digits that are the same for two tokenizers only if they encode alike."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


class StreamDecoder:
    """Turns tokens into text one at a time: never half a character; bytes that are not UTF-8 become U+FFFD."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The characters completed by this token, perhaps none."""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    @property
    def pending(self) -> bytes:
        """The bytes of a character that is not complete yet; assign them to continue a text that was cut there."""
        return self._decoder.getstate()[0]

    @pending.setter
    def pending(self, incomplete: bytes) -> None:
        self._decoder.setstate((incomplete, 0))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, else nothing."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def utf8(text: str) -> bytes:
    """The text's bytes; half a surrogate pair is a UserError that says where it is."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"position {error.start} of the text holds half a surrogate pair (U+{ord(text[error.start]):04X}), "
            "which is not a character; leave it out"
        ) from None

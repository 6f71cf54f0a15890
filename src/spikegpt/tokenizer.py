"""Text to token ids and back: bytes, characters or byte-level BPE behind one small interface.

Every kind is saved as `tokenizer.json` in the format of the Hugging Face `tokenizers` library, so that another
program reads the same file and gets the same ids.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from .errors import UsageError, UserError

FILE_NAME = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")

# GPT-2's pattern, but line ends stand alone: a paragraph break is one token whatever follows it, and text cut
# after a line end is split into the same words as the whole.
_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|[\r\n]+|[^\S\r\n]+(?!\S)|[^\S\r\n]+"


class Tokenizer(ABC):
    """Ids in [0, vocab_size) for text, each standing for some bytes of its UTF-8 form."""

    kind: ClassVar[Literal["bytes", "chars", "bpe"]]
    vocab_size: int
    eos_id: int | None = None
    """The token that ends a text, where there is one."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, int32 [T]."""

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, on all cores where that pays."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD. An id outside the vocabulary is a UserError."""
        if hasattr(ids, "tolist"):
            ids = ids.tolist()  # pyright: ignore[reportAttributeAccessIssue]
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token stands for; a special token's are its own text."""
        if not 0 <= id < self.vocab_size:
            raise UserError(f"token {id} is outside the tokenizer's vocabulary of {self.vocab_size}")
        return self._table[id]

    @cached_property
    def _table(self) -> list[bytes]:
        return self._all_bytes()

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
        """Writes `directory/tokenizer.json` in one step and returns its path."""
        path = Path(directory) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{FILE_NAME}.{os.getpid()}")
        try:
            partial.write_text(self.to_json(), encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    @cached_property
    def digest(self) -> str:
        """16 hex digits that are the same for two tokenizers only if they encode alike."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


class ByteTokenizer(Tokenizer):
    """Each byte of the UTF-8 text is a token, its id the byte's value."""

    kind = "bytes"
    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        """The bytes of `text`, int32 [T]."""
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)

    def _all_bytes(self) -> list[bytes]:
        return [bytes([value]) for value in range(256)]

    def _build(self) -> tokenizers.Tokenizer:
        vocab = {symbol: value for value, symbol in enumerate(_BYTE_SYMBOLS)}
        return _byte_level(models.BPE(vocab, []), None)


class CharTokenizer(Tokenizer):
    """Each character is a token, its id the position in `chars`.

    A character outside the list is a UserError that names it.
    """

    kind = "chars"

    def __init__(self, chars: Iterable[str]) -> None:
        self.chars = list(chars)
        if not self.chars:
            raise UserError("a character tokenizer needs at least one character")
        bad = next((char for char in self.chars if len(char) != 1), None)
        if bad is not None:
            raise UserError(f"{bad!r} is not a single character")
        if len(set(self.chars)) < len(self.chars):
            twice = next(char for char in self.chars if self.chars.count(char) > 1)
            raise UserError(f"the character {twice!r} stands more than once in the list")
        self.vocab_size = len(self.chars)
        codes = _codes("".join(self.chars))
        self._ids = np.full(int(codes.max()) + 2, -1, np.int32)  # one more: every character beyond the last
        self._ids[codes] = np.arange(len(codes))

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> CharTokenizer:
        """All the characters of the texts, in the order of their code points."""
        return cls(sorted(set[str]().union(*texts)))

    @classmethod
    def from_reference_json(cls, path: str | Path) -> CharTokenizer:
        """From a character vocabulary as RWKV-LM writes it: UTF-16 JSON, `{"0": char, "1": char, ...}`."""
        try:
            chars = {int(id): char for id, char in json.loads(Path(path).read_text(encoding="utf-16")).items()}
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path} is not a UTF-16 JSON object of id to character") from error
        if sorted(chars) != list(range(len(chars))):
            raise UserError(f"{path} does not number its {len(chars)} characters 0 to {len(chars) - 1}")
        return cls(chars[id] for id in range(len(chars)))

    def encode(self, text: str) -> np.ndarray:
        """The position of each character in `chars`, int32 [T]."""
        codes = _codes(text)
        ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
        if (ids < 0).any():
            char = text[int(np.argmax(ids < 0))]
            raise UserError(
                f"the character {char!r} (U+{ord(char):04X}) is not among the {self.vocab_size} of the vocabulary; "
                "leave it out, or use a tokenizer of bytes or bpe"
            )
        return ids

    def _all_bytes(self) -> list[bytes]:
        return [char.encode() for char in self.chars]

    def _build(self) -> tokenizers.Tokenizer:
        # WordLevel, for it raises on an unknown character where BPE would drop it without a word.
        built = tokenizers.Tokenizer(models.WordLevel({c: i for i, c in enumerate(self.chars)}, unk_token=""))
        built.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        built.decoder = decoders.Fuse()
        return built


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding, as of GPT-2 and GPT-NeoX.

    `decode(encode(text)) == text`, unless the tokenizer normalises text first (GPT-NeoX's composes characters: NFC).
    """

    kind = "bpe"

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1
        self.eos_id = next((vocab[token] for token in END_TOKENS if token in vocab), None)

    @classmethod
    def from_file(cls, path: str | Path) -> BPETokenizer:
        """Reads a `tokenizer.json` whose model is a byte-level BPE; anything else is a UserError."""
        tokenizer = load_tokenizer(path)
        if not isinstance(tokenizer, BPETokenizer):
            raise UserError(f"{path} holds a tokenizer of kind {tokenizer.kind}, not bpe")
        return tokenizer

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text` after the library's normalisation and merges, int32 [T]; nothing is added at its ends."""
        _utf8(text)
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, on all cores."""
        batch = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in batch]

    def _all_bytes(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        value_of = {symbol: value for value, symbol in enumerate(_BYTE_SYMBOLS)}
        for token, id in self._tokenizer.get_vocab(with_added_tokens=False).items():
            if not value_of.keys() >= set(token):
                raise UserError(f"token {id} ({token!r}) is not written in byte-level symbols: not a byte-level BPE")
            table[id] = bytes(value_of[symbol] for symbol in token)
        for id, added in self._tokenizer.get_added_tokens_decoder().items():
            table[id] = added.content.encode()
        return table

    def _build(self) -> tokenizers.Tokenizer:
        return self._tokenizer


class StreamDecoder:
    """Turns tokens into text one at a time: never half a character; bytes that are not UTF-8 become U+FFFD."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The characters completed by this token, perhaps none."""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, else nothing."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads a `tokenizer.json`, or the one in a directory, into the kind of tokenizer it describes."""
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
        spec = json.loads(text)
        model = spec["model"]
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a tokenizer in the Hugging Face tokenizers format") from error
    if model.get("type") == "WordLevel" and all(len(char) == 1 for char in model["vocab"]):
        return CharTokenizer(sorted(model["vocab"], key=model["vocab"].__getitem__))
    if model.get("type") != "BPE":
        raise UserError(f"{path} holds a {model.get('type')} tokenizer; only bytes, characters and BPE can be used")
    if _is_bytes(spec):
        return ByteTokenizer()
    try:
        tokenizer = BPETokenizer(tokenizers.Tokenizer.from_str(text))
    except Exception as error:  # the library raises bare Exception for a file it cannot understand
        raise UserError(f"{path} is not a tokenizer that can be read: {error}") from error
    tokenizer.token_bytes(0)
    return tokenizer


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Learns a byte-level BPE of at most `vocab_size` tokens: id 0 ends a text, then the 256 bytes, then merges.

    The same texts give the same tokenizer. Texts too short for so many tokens give fewer.
    """
    if vocab_size < 257:
        raise UsageError(f"vocab_size={vocab_size} is too small: 256 bytes and {END_OF_TEXT} need 257")
    tokenizer = _byte_level(models.BPE(), Regex(_WORDS))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=_BYTE_SYMBOLS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BPETokenizer(tokenizer)


def _byte_level(model: models.BPE, words: Regex | None) -> tokenizers.Tokenizer:
    """A tokenizer of the library over the bytes of a text, split into `words` first."""
    built = tokenizers.Tokenizer(model)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = [pre_tokenizers.Split(words, "isolated")] if words else []
    built.pre_tokenizer = pre_tokenizers.Sequence([*split, to_bytes]) if split else to_bytes
    built.decoder = decoders.ByteLevel()
    return built


def _is_bytes(spec: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` is what `ByteTokenizer` saves."""
    vocab = {symbol: value for value, symbol in enumerate(_BYTE_SYMBOLS)}
    return spec["model"]["vocab"] == vocab and not spec["model"]["merges"] and not spec.get("added_tokens")


def _byte_symbols() -> list[str]:
    """GPT-2's printable symbol for each byte: itself where Latin-1 prints it, else U+0100 and on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_BYTE_SYMBOLS = _byte_symbols()


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"position {error.start} of the text holds half a surrogate pair, no character") from error


def _codes(text: str) -> np.ndarray:
    """The code point of each character, uint32 [T]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)

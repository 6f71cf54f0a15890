"""Bytes, characters and byte-level BPE. T tokens, V vocabulary."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from ..errors import UsageError, UserError
from .base import Tokenizer, utf8
from .special import END_OF_TEXT, PADDING, end_of_text

# GPT-2's pattern, but line ends stand alone: a paragraph break is one token whatever follows it, and text cut
# after a line end is split into the same words as the whole.
_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|[\r\n]+|[^\S\r\n]+(?!\S)|[^\S\r\n]+"

_NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


def _byte_symbols() -> list[str]:
    """GPT-2's printable symbol for each byte: itself where Latin-1 prints it, else U+0100 and on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


BYTE_SYMBOLS = _byte_symbols()


class ByteTokenizer(Tokenizer):
    """Each byte of the UTF-8 text is a token, its id the byte's value."""

    kind = "bytes"
    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        """The bytes of `text`, int32 [T]."""
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32)

    def _all_bytes(self) -> list[bytes]:
        return [bytes([value]) for value in range(256)]

    def _build(self) -> tokenizers.Tokenizer:
        vocab = {symbol: value for value, symbol in enumerate(BYTE_SYMBOLS)}
        return _byte_level(models.BPE(vocab, []), None)


class CharTokenizer(Tokenizer):
    """Each character is a token; a character outside the list is a UserError that names it.

    ids: the id of each character, in the order of `chars`; None: its position. `names` are what the other ids are
    called in `tokenizer.json`; they stand for no text. An id without a name gets one, the first of them `PADDING`.
    """

    kind = "chars"

    def __init__(
        self, chars: Iterable[str], ids: Sequence[int] | None = None, names: Mapping[int, str] | None = None
    ) -> None:
        self.chars = list(chars)
        if not self.chars:
            raise UserError("a character tokenizer needs at least one character")
        bad = next((char for char in self.chars if len(char) != 1), None)
        if bad is not None:
            raise UserError(f"{bad!r} is not a single character")
        if len(set(self.chars)) < len(self.chars):
            twice = next(char for char in self.chars if self.chars.count(char) > 1)
            raise UserError(f"the character {twice!r} stands more than once in the list")
        half = next((char for char in self.chars if "\ud800" <= char <= "\udfff"), None)
        if half is not None:
            raise UserError(f"U+{ord(half):04X} is half a surrogate pair, not a character")
        self._id_of = list(range(len(self.chars)) if ids is None else ids)
        self._names = dict(names or {})
        self.vocab_size = max([*self._id_of, *self._names]) + 1
        codes = _codes("".join(self.chars))
        self._ids = np.full(int(codes.max()) + 2, -1, np.int32)  # one more: every character beyond the last
        self._ids[codes] = self._id_of

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> CharTokenizer:
        """All the characters of the texts, in the order of their code points."""
        chars = set[str]()
        for text in texts:
            chars.update(text)
        return cls(sorted(chars))

    def encode(self, text: str) -> np.ndarray:
        """The id of each character, int32 [T]."""
        codes = _codes(text)
        ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
        if (ids < 0).any():
            char = text[int(np.argmax(ids < 0))]
            raise UserError(
                f"the character {char!r} (U+{ord(char):04X}) is not among the {len(self.chars)} of the vocabulary; "
                "leave it out, or use a tokenizer of bytes or bpe"
            )
        return ids

    def _all_bytes(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        for id, char in zip(self._id_of, self.chars, strict=True):
            table[id] = char.encode()
        return table

    def _build(self) -> tokenizers.Tokenizer:
        # WordLevel, for it raises on an unknown character where BPE would drop it without a word.
        vocab = dict(zip(self.chars, self._id_of, strict=True))
        vocab |= {name: id for id, name in self._names.items()}
        for id in sorted(set(range(self.vocab_size)) - set(vocab.values())):
            vocab[f"<|unused-{id}|>" if PADDING in vocab else PADDING] = id
        built = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=""))
        built.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        built.decoder = decoders.Fuse()
        return built


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding, as of GPT-2 and GPT-NeoX.

    Every text comes back as it was; if the tokenizer composes characters first (GPT-NeoX's: NFC), in that normal form,
    whose bytes are then those that are counted. A text that would come back otherwise is a UserError.
    """

    kind = "bpe"

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if isinstance(tokenizer.model, models.BPE):
            tokenizer.model.dropout = None  # a regulariser of training: the same text must give the same ids
        self._tokenizer = tokenizer
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1
        end = end_of_text(tokenizer)
        self.eos_id = None if end is None else vocab[end]

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text` after the library's normalisation and merges, int32 [T]; nothing is added at its ends."""
        utf8(text)
        return self._checked(text, self._tokenizer.encode(text, add_special_tokens=False))

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, on all cores; the library takes a few hundred bytes for each character."""
        batch = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._checked(text, encoding) for text, encoding in zip(texts, batch, strict=True)]

    def _checked(self, text: str, encoding: tokenizers.Encoding) -> np.ndarray:
        """The ids, if they stand for every byte of the text."""
        ids = np.array(encoding.ids, np.int32)
        normalizer = self._tokenizer.normalizer
        read = text if normalizer is None else normalizer.normalize_str(text)
        raw = utf8(read)
        if (char := self._without_token(read)) is not None:
            raise UserError(
                f"the tokenizer has no token for {char!r} (U+{ord(char):04X}) and would drop it: it lacks "
                f"{len(self._absent)} of the 256 bytes; train it with initial_alphabet=ByteLevel.alphabet(), or leave "
                "the character out"
            )
        if int(self._lengths[ids].sum()) != len(raw):
            came = self.decode(ids)
            at = next(
                (i for i, (a, b) in enumerate(zip(read, came, strict=False)) if a != b), min(len(read), len(came))
            )
            wrong = f"{read[at]!r} (U+{ord(read[at]):04X})" if at < len(read) else "the end"
            raise UserError(
                f"the tokenizer does not give the text back: it loses or changes {wrong} at position {at} "
                f"(it comes back as {came[at : at + 8]!r}); use another tokenizer"
            )
        return ids

    def has_tokens_for(self, text: str) -> bool:
        """Whether every byte of `text` has a token."""
        return self._without_token(text) is None

    def _without_token(self, text: str) -> str | None:
        """The first character with a byte that has no token."""
        if not self._absent or not (absent := text.encode().translate(None, self._present)):
            return None
        return next(char for char in text if absent[0] in char.encode())

    @cached_property
    def _absent(self) -> set[int]:
        """The bytes of UTF-8 text that have no token."""
        vocab = self._tokenizer.get_vocab(with_added_tokens=False)
        return {byte for byte, symbol in enumerate(BYTE_SYMBOLS) if symbol not in vocab} - _NEVER_IN_UTF8

    @cached_property
    def _present(self) -> bytes:
        return bytes(set(range(256)) - self._absent)

    def _all_bytes(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        value_of = {symbol: value for value, symbol in enumerate(BYTE_SYMBOLS)}
        added = {id: token.content for id, token in self._tokenizer.get_added_tokens_decoder().items()}
        for token, id in self._tokenizer.get_vocab(with_added_tokens=False).items():
            if id in added:
                continue
            if not value_of.keys() >= set(token):
                raise UserError(f"token {id} ({token!r}) is not written in byte-level symbols: not a byte-level BPE")
            table[id] = bytes(value_of[symbol] for symbol in token)
        for id, content in added.items():
            table[id] = content.encode()
        return table

    def _build(self) -> tokenizers.Tokenizer:
        return self._tokenizer

    def gives_back(self, text: str) -> bool:
        """Whether `text` comes back as it was, up to composing and decomposing characters."""
        came = self.decode(self.encode(text))
        return unicodedata.normalize("NFC", came) == unicodedata.normalize("NFC", text)


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Learn a byte-level BPE of at most `vocab_size` tokens: id 0 ends a text, then the 256 bytes, then merges.

    The same texts give the same tokenizer. Texts too short for so many tokens give fewer. An end of text that stands in
    them literally is left out, for it is a token already.
    """
    if vocab_size < 257:
        raise UsageError(f"vocab_size={vocab_size} is too small: 256 bytes and {END_OF_TEXT} need 257")
    tokenizer = _byte_level(models.BPE(), Regex(_WORDS))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=BYTE_SYMBOLS,
        show_progress=False,
    )
    tokenizer.train_from_iterator((part for text in texts for part in text.split(END_OF_TEXT)), trainer)
    return BPETokenizer(tokenizer)


def _byte_level(model: models.BPE, words: Regex | None) -> tokenizers.Tokenizer:
    """A tokenizer of the library over the bytes of a text, split into `words` first."""
    built = tokenizers.Tokenizer(model)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = [pre_tokenizers.Split(words, "isolated")] if words else []
    built.pre_tokenizer = pre_tokenizers.Sequence([*split, to_bytes]) if split else to_bytes
    built.decoder = decoders.ByteLevel()
    return built


def _codes(text: str) -> np.ndarray:
    """The code point of each character, uint32 [T]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)

"""Reading tokenizers that other programs wrote: their ids are kept, and none of them may lose text in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from ..errors import UserError
from .base import FILE_NAME, Tokenizer
from .kinds import BYTE_SYMBOLS, BPETokenizer, ByteTokenizer, CharTokenizer
from .special import PAD_TOKENS

LARGEST_FILE = 1 << 27
"""Bytes of a tokenizer's file that are read: 128 MiB."""
MOST_TOKENS = 1 << 21
"""Ids that a vocabulary may have; memory grows with the largest."""

# Everything that tokenizers in use are known to drop, strip, add or fold.
_PROBES = (
    "a", " a", "a b", "  a  b  ", "a\n\nb\n", "\ta\r\nb\r\n", "\n", " ", "A a Z z", "it's 12 345,6 -- (ok)!?", "\x00\x7f\x1b",
    "é Ä ß ñ", "e\u0301", "ﬁ ² ½ Å", "猫が窓の外を見ている。", "привет мир",
    "🙂👩‍👩‍👧🏽", "\u00a0\u2003\u200b\u00ad\ufeffx", "…“”—",
    "▁a", "Ġa", "##a", "a</w>",
)  # fmt: skip
# Normalisers after which a text is canonically equivalent to what it was.
_HARMLESS = {"NFC", "NFD"}
_T = TypeVar("_T")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a `tokenizer.json`, or the one in a directory, as the kind of tokenizer it describes, with the file's ids.

    UserError: the file cannot be read, is of another kind, or its tokenizer loses or changes characters (which are named).
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    spec = _read(path)
    kind = spec["model"].get("type")
    if kind not in ("BPE", "WordLevel"):
        raise UserError(f"{path} holds a {str(kind)[:40]} tokenizer; only bytes, characters and BPE can be used")
    _check_ids(path, spec)
    _drop_added_padding(spec)
    if kind == "WordLevel":
        return _characters(path, spec)
    if _is_bytes(spec):
        return ByteTokenizer()
    return _bpe(path, spec)


def load_reference_vocabulary(path: str | Path) -> CharTokenizer:
    """A character vocabulary as RWKV-LM writes it: UTF-16 JSON, `{"0": char, "1": char, ...}`."""
    values = _json(Path(path), "utf-16", f"{path} is not a UTF-16 JSON object of id to character")
    if not isinstance(values, dict) or not all(isinstance(char, str) for char in values.values()):
        raise UserError(f"{path} is not a UTF-16 JSON object of id to character")
    try:
        chars = {int(id): char for id, char in values.items()}
    except ValueError:
        raise UserError(f"{path} is not a UTF-16 JSON object of id to character") from None
    if sorted(chars) != list(range(len(chars))):
        raise UserError(f"{path} does not number its {len(chars)} characters 0 to {len(chars) - 1}")
    return CharTokenizer(chars[id] for id in range(len(chars)))


def _json(path: Path, encoding: str, complaint: str) -> Any:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path} has more than {LARGEST_FILE >> 20} MiB, too much for a tokenizer")
        return json.loads(path.read_text(encoding=encoding))
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(complaint) from None


def _read(path: Path) -> dict[str, Any]:
    """The file as JSON, with a model that has a vocabulary; a byte order mark at its beginning is left out."""
    complaint = f"{path} is not a tokenizer in the Hugging Face tokenizers format"
    spec = _json(path, "utf-8-sig", complaint)
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise UserError(complaint)
    added = spec.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(t, dict) and isinstance(t.get("content"), str) for t in added):
        raise UserError(complaint)
    return spec


def _check_ids(path: Path, spec: dict[str, Any]) -> None:
    """Refuse ids that are not whole numbers in [0, MOST_TOKENS), and an id given twice."""
    vocab = spec["model"].get("vocab")
    if not isinstance(vocab, dict):
        raise UserError(f"{path} holds a tokenizer without a vocabulary of tokens and ids")
    ids = [*vocab.values(), *(token.get("id") for token in spec.get("added_tokens") or [])]
    if not vocab:
        raise UserError(f"{path} holds a tokenizer without tokens")
    if wrong := [id for id in ids if type(id) is not int or not 0 <= id < MOST_TOKENS]:
        raise UserError(
            f"{path} has the id {str(wrong[0])[:20]}; ids must be whole numbers from 0 to {MOST_TOKENS - 1}"
        )
    if len(set(vocab.values())) < len(vocab):
        raise UserError(f"{path} gives the same id to several tokens; such a text does not come back")


def _drop_added_padding(spec: dict[str, Any]) -> None:
    """Leave out the padding that transformers adds after the last token: the model has no such token."""
    vocab, added = spec["model"]["vocab"], spec.get("added_tokens")
    if added:
        ids = [*vocab.values(), *(token["id"] for token in added)]
        spec["added_tokens"] = [
            token
            for token in added
            if token["content"] not in PAD_TOKENS or token["content"] in vocab or token["id"] < max(ids)
        ]


def _characters(path: Path, spec: dict[str, Any]) -> CharTokenizer:
    """A WordLevel vocabulary that splits text into single characters."""
    vocab: dict[str, int] = spec["model"]["vocab"]
    chars = {char: id for char, id in vocab.items() if len(char) == 1}
    names = {id: name for name, id in vocab.items() if len(name) != 1}
    added = [str(token["content"]) for token in spec.get("added_tokens") or [] if token["content"] not in PAD_TOKENS]
    if not chars or len(names) > max(64, len(chars)):
        raise UserError(f"{path} holds a vocabulary of words; only bytes, characters and BPE can be used")
    if (unused := max(vocab.values()) + 1 - len(chars)) > max(64, len(chars)):
        raise UserError(f"{path} leaves {unused} ids without a character, more than it uses; number them from 0")
    if added:
        raise UserError(
            f"{path} holds characters with added tokens ({', '.join(added[:3])}), which stand for several characters at "
            "once; remove them from added_tokens, or use a BPE"
        )
    in_order = sorted(chars, key=chars.__getitem__)
    made = CharTokenizer(in_order, [chars[char] for char in in_order], names)
    text = "".join(in_order)
    theirs = _library(path, lambda: _built(spec).encode(text, add_special_tokens=False).ids)
    if theirs != made.encode(text).tolist():
        raise UserError(f"{path} does not read text character by character; only bytes, characters and BPE can be used")
    return made


def _bpe(path: Path, spec: dict[str, Any]) -> BPETokenizer:
    normalizers = _names(spec.get("normalizer"), "normalizers")
    made = _library(path, lambda: BPETokenizer(_built(spec)))
    try:
        made.token_bytes(0)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from None
    changed = sorted({char for probe in _PROBES for char in probe if not _survives(path, made, char)})
    if changed or set(normalizers) - _HARMLESS:
        how = f"its normaliser {', '.join(normalizers)} " if normalizers else "it "
        which = f"such as {', '.join(map(repr, changed[:5]))}" if changed else "of a text"
        raise UserError(f"{path} cannot be used: {how}loses or changes characters {which}")
    for probe in _PROBES:
        _survives(path, made, probe)
    return made


def _survives(path: Path, tokenizer: BPETokenizer, text: str) -> bool:
    """Whether the tokenizer gives `text` back. Text with bytes that have no token is refused later, where it is read."""
    if not tokenizer.has_tokens_for(text):
        return True
    try:
        return _library(path, lambda: tokenizer.gives_back(text))
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from None


def _built(spec: dict[str, Any]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def _library(path: Path, call: Callable[[], _T]) -> _T:
    """The result of `call`; whatever the library raises becomes a UserError, its panics too."""
    try:
        return call()
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{path} is not a tokenizer that can be read: {str(error)[:200]}") from None


def _names(part: Any, inside: str) -> list[str]:
    """The types of a part of the pipeline, those in sequences one by one."""
    if not isinstance(part, dict):
        return []
    if part.get("type") != "Sequence":
        return [str(part.get("type"))]
    steps = part.get(inside)
    return [name for step in (steps if isinstance(steps, list) else []) for name in _names(step, inside)]


def _is_bytes(spec: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` is what `ByteTokenizer` saves."""
    vocab = {symbol: value for value, symbol in enumerate(BYTE_SYMBOLS)}
    return spec["model"]["vocab"] == vocab and not spec["model"].get("merges") and not spec.get("added_tokens")

"""Text on disk, read as a stream of documents: plain or JSON lines, under gzip or xz, never wholly in memory."""

from __future__ import annotations

import codecs
import glob
import gzip
import json
import lzma
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from ..errors import UserError

PathLike = str | os.PathLike[str]

Errors = Literal["strict", "replace"]

TEXT = (".txt", ".md", ".py", ".raw", ".tokens")
JSON_LINES = (".jsonl",)
PACKED: dict[str, Callable[[Path], BinaryIO]] = {".gz": gzip.open, ".xz": lzma.open}  # pyright: ignore[reportAssignmentType]
SEPARATOR = "\n\n\n"
LONGEST_DOCUMENT = 1 << 22
"""Characters; a longer document is cut into several, so that none has to be wholly in memory."""
LONGEST_LINE = 1 << 25
"""Bytes of a line of JSON; a longer one is left out, for it cannot be read in parts."""
PIECE = 1 << 16
"""Characters given to a tokenizer at a time, so that one long document keeps every core busy."""

_BLOCK = 1 << 20
_BETWEEN_WORDS = re.compile(r"(?<=\S)(?= \S)")


class Document(NamedTuple):
    """A stretch of text that belongs together."""

    text: str
    ends: bool
    """Whether nothing of the same file follows that the text runs into."""


def expand(paths: Iterable[PathLike] | PathLike) -> list[Path]:
    """The files that files, folders (searched to the bottom) and glob patterns stand for, each once.

    Folders and patterns give only files that can be read; hidden ones are left out. UserError: a path that does not
    exist, a file of an unknown kind, nothing found.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, [paths] if isinstance(paths, str | os.PathLike) else paths):
        for file in _expand_one(path):
            found.setdefault(file.resolve(), file)
    if not found:
        raise UserError("no text was given: name files, folders or patterns")
    return list(found.values())


def documents(
    paths: Iterable[PathLike] | PathLike, *, separator: str | None = SEPARATOR, errors: Errors = "strict"
) -> Iterator[str]:
    """The texts of `read_files`, one after another; those of a text file join to exactly its text."""
    for document in read_files(paths, separator=separator, errors=errors):
        yield document.text


def read_files(
    paths: Iterable[PathLike] | PathLike, *, separator: str | None = SEPARATOR, errors: Errors = "strict"
) -> Iterator[Document]:
    """The documents of files, folders and patterns (see `expand`), one after another.

    A `.txt` file is split after each `separator` (and the line ends that follow it), any other text file is one
    document, and so is the key `text` of each line of a `.jsonl` file (with its line end). A byte order mark of UTF-8 is
    left out.

    In a text file, what is not UTF-8, or is NUL, is a UserError that says where; with `errors="replace"` it becomes
    U+FFFD (and is counted as such in bytes). In a `.jsonl` file a line without text is left out and half of a surrogate
    pair is read as U+FFFD, with one warning for the file; if no line has text, that is a UserError.
    """
    for file in expand(paths):
        yield from read_documents(file, separator=separator, errors=errors)


def read_documents(path: Path, *, separator: str | None = SEPARATOR, errors: Errors = "strict") -> Iterator[Document]:
    """The documents of one file, as `read_files` describes."""
    try:
        with open_raw(path) as stream:
            if kind(path) in JSON_LINES:
                yield from _json_documents(path, stream, errors)
            else:
                yield from _split(_decode(path, stream, errors), separator if kind(path) == ".txt" else None)
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged or cut short: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def kind(path: Path) -> str | None:
    """The extension that says how a file is read, without a packer's; None: unknown."""
    name = path.with_suffix("") if path.suffix.lower() in PACKED else path
    suffix = name.suffix.lower()
    return suffix if suffix in TEXT + JSON_LINES else None


def open_raw(path: Path) -> BinaryIO:
    """The file's bytes, unpacked as they are read."""
    unpack = PACKED.get(path.suffix.lower())
    return unpack(path) if unpack else path.open("rb")


def cut_between_words(text: str, limit: int) -> int:
    """Where to cut a text of more than `limit` characters: before a lone space, at or before `limit`.

    GPT-2's words begin with that space, so the two halves tokenise as the whole does. Where there is no such space
    (at least in the second half) the cut is after a line end, or else at `limit`: the text still joins exactly.
    """
    for start in (max(limit - 4096, limit // 2), limit // 2):
        spaces = [match.start() for match in _BETWEEN_WORDS.finditer(text, start, limit + 2) if match.start() <= limit]
        if spaces:
            return spaces[-1]
    line_end = text.rfind("\n", limit // 2, limit)
    return line_end + 1 if line_end >= 0 else limit


def pieces(text: str | Iterable[str], limit: int) -> Iterator[str]:
    """A text, or the parts of one, in pieces of at most `limit` characters, cut where tokenisation does not notice."""
    rest = ""
    for part in [text] if isinstance(text, str) else text:
        rest += part
        start = 0
        while len(rest) - start > limit + 1:
            end = start + cut_between_words(rest[start : start + limit + 2], limit)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if len(rest) > limit:
        cut = cut_between_words(rest, limit)
        yield rest[:cut]
        rest = rest[cut:]
    yield rest


def _expand_one(path: Path) -> list[Path]:
    if path.is_file():
        if kind(path) is None:
            known = " ".join(TEXT + JSON_LINES)
            raise UserError(f"{path} is of an unknown kind; readable are {known}, also under {' '.join(PACKED)}")
        return [path]
    if path.is_dir():
        inside = (file for file in sorted(path.rglob("*")) if not _hidden(file.relative_to(path)))
        return _readable(inside, f"no text in the folder {path}")
    if glob.has_magic(str(path)):
        matches = (Path(name) for name in sorted(glob.glob(str(path), recursive=True)))
        return _readable(matches, f"nothing readable matches {path}")
    raise UserError(f"{path} does not exist")


def _readable(files: Iterable[Path], complaint: str) -> list[Path]:
    found = [file for file in files if kind(file) and file.is_file()]
    if not found:
        raise UserError(f"{complaint}: looked for {' '.join(TEXT + JSON_LINES)}, also under {' '.join(PACKED)}")
    return found


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _decode(path: Path, stream: BinaryIO, errors: Errors) -> Iterator[str]:
    """The text of the stream, block by block."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    block = stream.read(_BLOCK)
    while len(block) < len(codecs.BOM_UTF8) and (more := stream.read(_BLOCK)):
        block += more
    read = len(codecs.BOM_UTF8) if block.startswith(codecs.BOM_UTF8) else 0
    block = block[read:] or stream.read(_BLOCK)
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and errors == "strict":
        raise _not_text(path, "its byte order mark is that of UTF-16")
    while True:
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _not_text(path, f"byte {read - waiting + error.start} is not UTF-8") from error
        if "\0" in text:
            if errors == "strict":
                raise _not_text(path, f"byte {read + block.index(0)} is zero")
            text = text.replace("\0", "\ufffd")
        if text:
            yield text
        if not block:
            return
        read += len(block)
        block = stream.read(_BLOCK)


def _not_text(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not text: {why}; leave the file out, or convert it to UTF-8")


def _split(blocks: Iterable[str], separator: str | None) -> Iterator[Document]:
    """Documents from the text of one file in blocks: cut after each separator, and at the longest length."""
    # The line ends after a separator belong to it; one at the very end of what has been read may go on.
    boundary = re.compile(re.escape(separator) + r"[\r\n]*(?=[^\r\n])") if separator else None
    text = ""
    for block in blocks:
        searched = max(0, len(text) - len(separator or "") - 64)
        text += block
        start = 0
        for match in boundary.finditer(text, searched) if boundary else ():
            for piece in pieces(text[start : match.end()], LONGEST_DOCUMENT):
                yield Document(piece, False)
            start = match.end()
        text = text[start:]
        while len(text) > LONGEST_DOCUMENT + 1:
            cut = cut_between_words(text, LONGEST_DOCUMENT)
            yield Document(text[:cut], False)
            text = text[cut:]
    *begun, last = pieces(text, LONGEST_DOCUMENT)
    for piece in begun:
        yield Document(piece, False)
    if last:
        yield Document(last, True)


def _json_documents(path: Path, stream: BinaryIO, errors: Errors) -> Iterator[Document]:
    """The texts of a file of JSON lines. What was left out or changed is said once, at the end."""
    good, bad, halves = 0, _Found(), _Found()
    for number, line in _lines(stream):
        if line is not None and not line.strip():
            continue
        text = None if line is None else _text_of(line, errors)
        if text is None:
            bad.note(number)
            continue
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if whole != text:
            halves.note(number)
        good += 1
        yield from _split([whole if whole.endswith("\n") else whole + "\n"], None)
    what = f'not a JSON object with a string under "text" (of at most {LONGEST_LINE >> 20} MiB)'
    if bad.count and not good:
        raise UserError(f"line {bad.first} of {path} is {what}, and no other line is one")
    # The same text every time: Python's own filter says it once, however often the file is read.
    if bad.count:
        warnings.warn(
            f"{path}: left out {bad.count} of {bad.count + good} lines: line {bad.first} is {what}", stacklevel=1
        )
    if halves.count:
        warnings.warn(
            f"{path}: {halves.count} lines hold half a surrogate pair, which is no character and is read as U+FFFD (line "
            f"{halves.first})",
            stacklevel=1,
        )


@dataclass
class _Found:
    """How many lines were found to be of some sort, and which was the first."""

    count: int = 0
    first: int = 0

    def note(self, number: int) -> None:
        self.first = self.first or number
        self.count += 1


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """The lines with their numbers, a byte order mark left out; None in the place of one that is too long."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if len(line) <= LONGEST_LINE:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(LONGEST_LINE)
        yield number, None


def _text_of(line: bytes, errors: Errors) -> str | None:
    """The string under "text" of a line of JSON, if it is such a line."""
    try:
        text = json.loads(line.decode("utf-8", errors))["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return text if isinstance(text, str) else None

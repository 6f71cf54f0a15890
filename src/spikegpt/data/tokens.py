"""Token files on disk, cached by the text and the tokenizer."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..errors import UsageError, UserError
from ..files import write_directory
from ..tokenizer import Tokenizer
from .corpus import SEPARATOR, Document, Errors, PathLike, cut_between_words, expand, read_documents
from .encode import encode_documents
from .token_file import TokenFile, TokenWriter

_FORMAT = 2
_BATCH = 1 << 21  # characters read ahead
_SAMPLE = 1 << 16

Paths = Sequence[PathLike] | PathLike


class Corpus(NamedTuple):
    """Training text and held-out text."""

    train: TokenFile
    valid: TokenFile | None


def prepare(
    paths: Paths,
    tokenizer: Tokenizer,
    cache_dir: PathLike | None = None,
    *,
    valid: float = 0.01,
    valid_paths: Paths = (),
    separator: str | None = SEPARATOR,
    errors: Errors = "strict",
    progress: bool = True,
) -> Corpus:
    """Tokenises files (see `corpus.read_files`) once, and splits them into training and validation text.

    A fraction `valid` of the bytes, approximately, is held out, in whole documents chosen by a hash of their text: the
    choice depends neither on a document's position nor on its file's name. If the corpus is a single document, its tail
    is held out. With `valid_paths` that text is held out instead, and with `valid=0` none.

    The result is cached in `cache_dir/tokens-KEY` (None: in `~/.cache/spikegpt`) and reused as long as the key is the
    same: it covers each file's name, size, time of change and 64 KiB at its start, middle and end, the tokenizer and the
    settings here.

    UserError: a file that cannot be read as text, an empty corpus, a full disk. Nothing half-written is left.
    """
    if not 0 <= valid < 1:
        raise UsageError(f"valid={valid} must be in [0, 1): the fraction of the text to hold out")
    fraction = 0.0 if valid_paths else valid
    source = _Source(expand(paths), separator, errors)
    folder = _cached(source, tokenizer, Path(cache_dir or Path.home() / ".cache" / "spikegpt"), fraction, progress)
    train = TokenFile(folder / "train.bin")
    if valid_paths:
        how: dict[str, Any] = {"separator": separator, "errors": errors, "progress": progress}
        return Corpus(train, prepare_files(valid_paths, tokenizer, cache_dir, **how))
    return Corpus(train, TokenFile(folder / "valid.bin") if fraction else None)


def prepare_files(
    paths: Paths,
    tokenizer: Tokenizer,
    cache_dir: PathLike | None = None,
    *,
    separator: str | None = SEPARATOR,
    errors: Errors = "strict",
    progress: bool = True,
) -> TokenFile:
    """Tokenises files into a single token file; as `prepare` with nothing held out."""
    return prepare(paths, tokenizer, cache_dir, valid=0, separator=separator, errors=errors, progress=progress).train


class _Source(NamedTuple):
    """Files and how to read them."""

    files: list[Path]
    separator: str | None
    errors: Errors

    def read(self) -> Iterator[Document]:
        for file in self.files:
            yield from read_documents(file, separator=self.separator, errors=self.errors)

    def identity(self) -> Iterator[str]:
        """Identifies this text without reading all of it."""
        for file in self.files:
            try:
                about = file.stat()
                yield f"{file.name}\0{about.st_size}\0{about.st_mtime_ns}\0{_sample(file, about.st_size)}"
            except OSError as error:
                raise UserError(f"cannot read {file}: {error.strerror}") from error
        yield f"{self.separator!r}\0{self.errors}"


class _Split(NamedTuple):
    """Which text is held out."""

    bytes: int
    """Of the whole text."""
    documents: int
    held_out: frozenset[int]
    """Hashes of the documents held out."""
    tail: float
    """Fraction of the last document to hold out, from its end."""


def _cached(source: _Source, tokenizer: Tokenizer, cache_dir: Path, fraction: float, progress: bool) -> Path:
    """The folder of the token files, created if it does not exist."""
    key = hashlib.sha256()
    for part in (*source.identity(), tokenizer.digest, f"{fraction!r}", f"{_FORMAT}"):
        key.update(part.encode() + b"\0")
    folder = cache_dir / f"tokens-{key.hexdigest()[:16]}"
    if folder.is_dir():
        for name in ("train.bin", "valid.bin"):
            TokenFile(folder / name).check(tokenizer.vocab_size)
        return folder

    def fill(inside: Path) -> None:
        with _progress_bar(progress) as bar:
            split = _choose_split(source, fraction, bar)
            _write_tokens(source, tokenizer, split, inside, bar)
            tokenizer.save(inside)

    write_directory(folder, fill, replace=False)  # another process that was faster has written the same
    return folder


def _choose_split(source: _Source, fraction: float, bar: Progress) -> _Split:
    """Read everything once: report faults before anything is written, and choose the documents to hold out."""
    hashes, sizes = array("Q"), array("Q")
    task = bar.add_task("reading", total=None)
    for text, _ in source.read():
        raw = text.encode()
        hashes.append(_hash(raw))
        sizes.append(len(raw))
        bar.update(task, advance=len(raw))
    bar.remove_task(task)
    total = sum(sizes)
    if not total:
        names = ", ".join(map(str, source.files[:3])) + (" ..." if len(source.files) > 3 else "")
        raise UserError(f"there is no text in {names}")
    whole = _Split(total, len(sizes), frozenset(), 0.0)
    if not fraction:
        return whole
    texts, which = np.unique(np.array(hashes), return_inverse=True)
    if len(texts) == 1:
        bar.console.print(f"a single document: its end, {fraction:.1%}, is held out for validation", soft_wrap=True)
        return whole._replace(tail=fraction * len(sizes))
    text_bytes = np.bincount(which, np.array(sizes))
    chosen = _hold_out(text_bytes, fraction * total)
    if (taken := text_bytes[chosen].sum() / total) > 2 * fraction:
        why = f"no smaller documents amount to {fraction:.1%}"
        bar.console.print(f"{taken:.1%} of the text is held out for validation: {why}", soft_wrap=True)
    return whole._replace(held_out=frozenset(texts[chosen].tolist()))


def _hold_out(sizes: np.ndarray, wanted: float) -> np.ndarray:
    """Which documents, of `sizes` bytes in the order of their hashes, to hold out: at least one, and never all.

    The first by hash, until they amount to `wanted` bytes, of those that would not overshoot by themselves; if even
    together they are not worth half of that, then the smallest of the others.
    """
    small = sizes <= wanted
    order = np.lexsort((np.where(small, 0, sizes), ~small))
    before = np.cumsum(sizes[order]) - sizes[order]
    needed = before < np.where(small[order], wanted, wanted / 2)
    return order[: min(max(1, int(needed.sum())), len(sizes) - 1)]


def _write_tokens(source: _Source, tokenizer: Tokenizer, split: _Split, folder: Path, bar: Progress) -> None:
    """Tokenises all documents to `train.bin` and `valid.bin`, reading one batch ahead."""
    with TokenWriter(folder / "train.bin", tokenizer) as train, TokenWriter(folder / "valid.bin", tokenizer) as valid:
        task = bar.add_task("tokenising", total=split.bytes)

        def tokenise(batch: Sequence[tuple[TokenWriter, Document]], first: int) -> None:
            for ids, number in encode_documents((document for _, document in batch), tokenizer):
                bar.update(task, advance=batch[number][0].add(ids, first + number))

        with ThreadPoolExecutor(1) as worker:
            pending, first = None, 0
            for batch in _batches(_sides(source, split, train, valid)):
                if pending:
                    pending.result()
                pending, first = worker.submit(tokenise, batch, first), first + len(batch)
            if pending:
                pending.result()


def _sides(
    source: _Source, split: _Split, train: TokenWriter, valid: TokenWriter
) -> Iterator[tuple[TokenWriter, Document]]:
    """Each document with the writer that it goes to."""
    for number, document in enumerate(source.read(), 1):
        text = document.text
        if split.tail and number == split.documents:
            keep = max(1, min(len(text) - 1, math.floor(len(text) * (1 - split.tail))))
            cut = cut_between_words(text, keep)
            yield train, Document(text[:cut], False)
            yield valid, Document(text[cut:], document.ends)
        else:
            yield (valid if split.held_out and _hash(text.encode()) in split.held_out else train), document


def _batches(items: Iterable[tuple[TokenWriter, Document]]) -> Iterator[list[tuple[TokenWriter, Document]]]:
    batch: list[tuple[TokenWriter, Document]] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item[1].text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _hash(raw: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")


def _sample(file: Path, size: int) -> str:
    """A hash of the file's start, middle and end, as it lies on disk."""
    sample = hashlib.sha256()
    with file.open("rb") as stream:
        for start in (0, max(0, size // 2 - _SAMPLE // 2), max(0, size - _SAMPLE)):
            stream.seek(start)
            sample.update(stream.read(_SAMPLE))
    return sample.hexdigest()


@contextmanager
def _progress_bar(show: bool) -> Iterator[Progress]:
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f} bytes")]
    columns += [TimeElapsedColumn(), TimeRemainingColumn()]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal)) as bar:
        yield bar

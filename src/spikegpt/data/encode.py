"""Documents to token ids: the one way, for token files, evaluation, profiling and traces. N tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..tokenizer import Tokenizer
from .corpus import PIECE, SEPARATOR, Document, Errors, pieces, read_files
from .token_file import TokenFile, TokenWriter

AT_ONCE = 1 << 19
"""Characters that are encoded in one call: enough to keep every core busy; a tokenizer takes a few hundred bytes for each."""
MOST_MEMORY = 1 << 29
"""Bytes that reading and tokenising a text of any length, in any form, take at most beside the program itself."""


class Part(NamedTuple):
    """Ids of a document, or of a part of one: parts of a document follow one another."""

    ids: np.ndarray
    """int32 [T]; after the last part of a document that ends, the end of text, if the tokenizer has that token."""
    document: int
    """Number of the document among those that are encoded, from 0."""


def encode_documents(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[Part]:
    """The ids of documents, part by part, so that memory depends on no document's length."""
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    texts: list[str] = []
    places: list[tuple[int, list[int]]] = []
    size = 0

    def encoded_so_far() -> Iterator[Part]:
        for ids, (number, after) in zip(tokenizer.encode_many(texts), places, strict=True):
            yield Part(np.concatenate([ids, np.array(after, np.int32)]) if after else ids, number)

    for number, document in enumerate(documents):
        *begun, last = pieces(document.text, PIECE)
        for piece, after in [*((piece, []) for piece in begun), (last, end if document.ends else [])]:
            texts.append(piece)
            places.append((number, after))
            size += len(piece)
            if size >= AT_ONCE:
                yield from encoded_so_far()
                texts, places, size = [], [], 0
    yield from encoded_so_far()


def encode(texts: Iterable[str | Document], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The ids of texts that are read one after another as one; a plain string is followed by no end of text."""
    documents = (Document(text, False) if isinstance(text, str) else text for text in texts)
    return (part.ids for part in encode_documents(documents, tokenizer))


@contextmanager
def encoded(
    paths: Iterable[str | Path] | str | Path,
    tokenizer: Tokenizer,
    *,
    limit: int | None = None,
    separator: str | None = SEPARATOR,
    errors: Errors = "strict",
) -> Iterator[TokenFile]:
    """A temporary token file of all documents of the files, or of their first `limit` tokens; read no further than that.

    The tokens lie on the disk, so that memory does not grow with the text.
    """
    with tempfile.TemporaryDirectory(prefix="spikegpt-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "text.bin"
        with TokenWriter(path, tokenizer) as writer:
            for part in encode_documents(read_files(paths, separator=separator, errors=errors), tokenizer):
                ids = part.ids if limit is None else part.ids[: limit - writer.n_tokens]
                writer.add(ids, part.document)
                if writer.n_tokens == limit:
                    break
        yield TokenFile(path)

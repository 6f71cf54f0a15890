"""Documents to token ids: the one way, for token files, evaluation, profiling and traces. N tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..tokenizer import Tokenizer
from .corpus import PIECE, SEPARATOR, Document, Errors, pieces, read_files
from .token_file import TokenFile, TokenWriter

MOST_MEMORY = 1 << 30
"""Bytes that reading, tokenising and evaluating a text of any length, in any form, need at most beside the model."""

_TOGETHER = 1 << 20
"""Characters of short documents that are encoded in one call, so that they keep every core busy."""


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer) -> list[np.ndarray]:
    """The ids of each document, int32, with the end of text after one that `ends`, if the tokenizer has that token."""
    texts = [list(pieces(document.text, PIECE)) for document in documents]
    ids = iter(tokenizer.encode_many([piece for text in texts for piece in text]))
    end = [] if tokenizer.eos_id is None else [np.array([tokenizer.eos_id], np.int32)]
    return [
        np.concatenate([next(ids) for _ in text] + (end if document.ends else []))
        for document, text in zip(documents, texts, strict=True)
    ]


def encode(texts: Iterable[str | Document], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The ids of texts that are read one after another as one; a plain string is followed by no end of text."""
    batch: list[Document] = []
    size = 0
    for text in texts:
        batch.append(Document(text, False) if isinstance(text, str) else text)
        size += len(batch[-1].text)
        if size >= _TOGETHER:
            yield from encode_documents(batch, tokenizer)
            batch, size = [], 0
    yield from encode_documents(batch, tokenizer)


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
            for ids in encode(read_files(paths, separator=separator, errors=errors), tokenizer):
                writer.add(ids if limit is None else ids[: limit - writer.n_tokens])
                if writer.n_tokens == limit:
                    break
        yield TokenFile(path)

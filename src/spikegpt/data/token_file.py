"""Tokens on disk: written once, then mapped into memory."""

from __future__ import annotations

import hashlib
import math
import os
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import read_json, write_json
from ..tokenizer import Tokenizer

_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_READ = 1 << 23  # tokens that `TokenFile.check` reads at a time


class TokenFile:
    """Tokens on disk: `NAME.bin` (uint16 or uint32, little-endian) beside `NAME.json`, which describes them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._checked = math.inf
        try:
            about = read_json(self.path.with_suffix(".json"))
            self.n_tokens = _count(about["tokens"])
            """Tokens in the file, N."""
            self.n_bytes = _count(about["bytes"])
            """Bytes of the UTF-8 text that they stand for (`Tokenizer.text_bytes`)."""
            self.n_documents = _count(about["documents"])
            """Documents, or parts of them, in the file."""
            self.hash = str(about["hash"])
            """16 hex digits of the tokens' SHA-256."""
            self.tokenizer = str(about["tokenizer"])
            """`Tokenizer.digest` of the tokenizer that made them."""
            self._dtype = _DTYPES[about["dtype"]]
            size = self.path.stat().st_size
        except OSError as error:
            raise UserError(f"cannot read the token file {self.path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path.with_suffix('.json')} does not describe a token file ({error})") from error
        if size != self.n_tokens * self._dtype.itemsize:
            raise UserError(f"the token file {self.path} is cut short; delete its folder and prepare the text again")

    @cached_property
    def ids(self) -> np.ndarray:
        """The ids, a read-only memory map [N]."""
        if self.n_tokens == 0:
            return np.empty(0, self._dtype)
        return np.memmap(self.path, self._dtype, mode="r")

    def __len__(self) -> int:
        return self.n_tokens

    def check(self, vocab_size: int) -> None:
        """Read the whole file once: UserError where it is damaged or has an id that is not below `vocab_size`."""
        if self._checked <= vocab_size:
            return
        hash = hashlib.sha256()
        for start in range(0, self.n_tokens, _READ):
            part = self.ids[start : start + _READ]
            if part.max() >= vocab_size:
                raise UserError(
                    f"the token file {self.path} has token {part.max()}, but the vocabulary only {vocab_size}; "
                    "delete its folder and prepare the text again"
                )
            hash.update(np.ascontiguousarray(part).data)
        if hash.hexdigest()[:16] != self.hash:
            raise UserError(
                f"the token file {self.path} is damaged: its checksum does not match; delete its folder and prepare "
                "the text again"
            )
        self._checked = vocab_size


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no number of anything")
    return value


class TokenWriter:
    """Appends documents to a token file; its description is written at the end."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self._path = path
        self._dtype = _DTYPES["uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"]
        self._tokenizer = tokenizer
        self._hash = hashlib.sha256()
        self._tokens = self._bytes = self._documents = 0
        self._last = -1

    def __enter__(self) -> TokenWriter:
        self._file = self._path.open("wb")
        return self

    @property
    def n_tokens(self) -> int:
        """Tokens written so far."""
        return self._tokens

    def add(self, ids: np.ndarray, document: int) -> int:
        """Write ids of a document, which its number tells from the one before; the bytes of text that they stand for."""
        raw = ids.astype(self._dtype).tobytes()
        self._file.write(raw)
        self._hash.update(raw)
        self._tokens += len(ids)
        self._bytes += (size := self._tokenizer.text_bytes(ids))
        self._documents += document != self._last
        self._last = document
        return size

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            if failed is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._describe()
        finally:
            self._file.close()

    def _describe(self) -> None:
        about = {
            "tokens": self._tokens,
            "bytes": self._bytes,
            "documents": self._documents,
            "dtype": f"uint{self._dtype.itemsize * 8}",
            "hash": self._hash.hexdigest()[:16],
            "tokenizer": self._tokenizer.digest,
        }
        write_json(self._path.with_suffix(".json"), about)

"""A text of many short books, and files made of it."""

import re
from pathlib import Path

from spikegpt.data.token_file import TokenFile
from spikegpt.data.tokens import prepare_files
from spikegpt.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
BOOKS = [f"Book {i}: " + "né à Paris, he sat.\n\nThe end. " * (3 + i % 7) + "\n" * (3 + i % 3) for i in range(40)]
TEXT = "".join(BOOKS)


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def books_in(text: str) -> list[str]:
    return sorted(re.findall(r"Book.*?(?=Book|\Z)", text, re.S))


def tokens_of(folder: Path, n: int) -> TokenFile:
    """A token file of the bytes 0, 1, ... 255, 0, ..."""
    return prepare_files(
        write(folder / "count.txt", ("".join(map(chr, range(1, 127))) * (n // 126 + 1))[:n]), BYTES, folder
    )

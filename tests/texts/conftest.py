from pathlib import Path

import pytest
from books import TEXT, write

from spikegpt.tokenizer import BPETokenizer, train_bpe


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return train_bpe([TEXT], 300)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return write(tmp_path / "book.txt", TEXT)

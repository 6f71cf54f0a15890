"""Documents to token files: all of the text, held out by document, never tokenised twice, damage found."""

import errno
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from books import BOOKS, BYTES, TEXT, books_in, write

from spikegpt.data import encode, token_file
from spikegpt.data import tokens as data
from spikegpt.data.token_file import TokenFile
from spikegpt.data.tokens import prepare, prepare_files
from spikegpt.errors import UsageError, UserError
from spikegpt.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer


def test_token_files_hold_all_of_the_text(book: Path, bpe: BPETokenizer, tmp_path: Path) -> None:
    for tokenizer in (BYTES, CharTokenizer.from_texts([TEXT]), bpe):
        train, valid = prepare(book, tokenizer, tmp_path / "cache", valid=0.2)
        assert valid is not None
        assert train.n_bytes + valid.n_bytes == len(TEXT.encode())
        assert train.n_documents + valid.n_documents == len(BOOKS)
        sides = [tokenizer.decode(file.ids).removesuffix("<|endoftext|>") for file in (train, valid)]
        assert books_in("".join(sides)) == sorted(BOOKS)
        assert all(len(file) == len(file.ids) for file in (train, valid))
        assert train.tokenizer == tokenizer.digest


def test_the_end_token_stands_where_a_file_ends(tmp_path: Path, bpe: BPETokenizer) -> None:
    write(tmp_path / "a.txt", "The end.\n\n\nThe end.")
    write(tmp_path / "b.jsonl", '{"text": "he"}\n{"text": "sat"}\n')
    file = prepare_files([tmp_path / "a.txt", tmp_path / "b.jsonl"], bpe, tmp_path)
    end = "<|endoftext|>"
    assert bpe.decode(file.ids) == f"The end.\n\n\nThe end.{end}he\n{end}sat\n{end}"
    assert file.n_bytes == len("The end.\n\n\nThe end.he\nsat\n")


def test_batches_and_pieces_change_nothing(
    book: Path, bpe: BPETokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(book, bpe, tmp_path / "a", valid=0.2)
    monkeypatch.setattr(encode, "PIECE", 40)
    monkeypatch.setattr(encode, "AT_ONCE", 90)
    monkeypatch.setattr(data, "_BATCH", 200)
    parts = prepare(book, bpe, tmp_path / "b", valid=0.2)
    assert [file.hash for file in parts if file] == [file.hash for file in whole if file]


def test_wide_vocabularies_take_four_bytes(book: Path, tmp_path: Path) -> None:
    chars = CharTokenizer(map(chr, [*range(0xD800), *range(0xE000, 0x12000)]))
    file = prepare_files(book, chars, tmp_path / "cache")
    assert chars.vocab_size > 1 << 16 and file.ids.dtype == np.dtype("<u4")
    assert chars.decode(file.ids) == TEXT
    assert prepare_files(book, BYTES, tmp_path / "cache").ids.dtype == np.dtype("<u2")


def held_out(paths: list[Path], cache: Path, valid: float) -> str:
    corpus = prepare(paths, BYTES, cache, valid=valid)
    assert corpus.valid is not None
    return BYTES.decode(corpus.valid.ids)


def test_a_document_keeps_its_side_wherever_it_stands(tmp_path: Path) -> None:
    shuffled = BOOKS.copy()
    random.Random(1).shuffle(shuffled)
    first = held_out([write(tmp_path / "a.txt", TEXT)], tmp_path, 0.2)
    files = [write(tmp_path / f"{i:02}.md", book) for i, book in enumerate(shuffled)]
    second = held_out(files, tmp_path, 0.2)
    assert books_in(first) == books_in(second)
    assert 0.1 < len(first) / len(TEXT) < 0.3


@pytest.mark.parametrize("valid", [0.001, 0.5, 0.999])
def test_both_sides_get_a_document(tmp_path: Path, valid: float) -> None:
    texts = [f"{i} ".ljust(200 + i, "x") + "\n\n\n" for i in range(3)]
    corpus = prepare(write(tmp_path / "a.txt", "".join(texts)), BYTES, tmp_path, valid=valid)
    assert corpus.valid and corpus.train.n_documents >= 1 and corpus.valid.n_documents >= 1
    assert corpus.train.n_documents + corpus.valid.n_documents == 3


def test_the_same_text_stands_on_one_side_only(tmp_path: Path) -> None:
    texts = ["same\n\n\n", "other\n\n\n"] * 10
    train, valid = prepare(write(tmp_path / "a.txt", "".join(texts)), BYTES, tmp_path, valid=0.3)
    assert valid and {BYTES.decode(train.ids), BYTES.decode(valid.ids)} == {texts[0] * 10, texts[1] * 10}


def test_a_single_document_gives_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "some words " * 1000
    train, valid = prepare(write(tmp_path / "a.txt", text), BYTES, tmp_path, valid=0.1)
    assert valid and BYTES.decode(train.ids) + BYTES.decode(valid.ids) == text
    assert valid.n_bytes == pytest.approx(1100, abs=20)
    assert "single document" in capsys.readouterr().err


def test_held_out_text_can_be_named_or_none(book: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.txt", "held out")
    train, valid = prepare(book, BYTES, tmp_path, valid_paths=other)
    assert BYTES.decode(train.ids) == TEXT and valid and BYTES.decode(valid.ids) == "held out"
    train, valid = prepare(book, BYTES, tmp_path, valid=0)
    assert BYTES.decode(train.ids) == TEXT and valid is None


class Counting(ByteTokenizer):
    """Counts the texts it is given."""

    count = 0

    def encode(self, text: str) -> np.ndarray:
        Counting.count += 1
        return super().encode(text)


def test_unchanged_text_is_not_tokenised_again(book: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def work(tokenizer: Tokenizer, **options) -> int:
        Counting.count = 0
        prepare(book, tokenizer, cache, **options)
        return Counting.count

    assert work(Counting()) > 0
    assert work(Counting()) == 0
    assert work(Counting(), valid=0.3) > 0
    assert work(Counting(), separator="\n\n") > 0
    write(book, TEXT.replace("Book 20", "BOOK 20"))
    os.utime(book, ns=(1, 1))
    assert work(Counting()) > 0
    about = book.stat()
    write(book, TEXT.replace("Book 0", "BOOK 0"))
    os.utime(book, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert work(Counting()) > 0, "the sampled contents tell, even if size and time do not"


def test_another_tokenizer_makes_other_files(book: Path, tmp_path: Path) -> None:
    one = CharTokenizer.from_texts([TEXT])
    other = CharTokenizer(reversed(one.chars))
    files = [prepare_files(book, tokenizer, tmp_path) for tokenizer in (one, other)]
    assert files[0].path != files[1].path
    assert one.decode(files[0].ids) == other.decode(files[1].ids) == TEXT


@pytest.mark.parametrize("raw", [b"", b"abc\0", b"abc\xff"])
def test_bad_text_leaves_nothing_behind(tmp_path: Path, raw: bytes) -> None:
    good = write(tmp_path / "good.txt", TEXT if raw else "")
    with pytest.raises(UserError) as error:
        prepare([good, write(tmp_path / "bad.txt", raw)], BYTES, tmp_path / "cache")
    assert "bad.txt" in str(error.value) and "\n" not in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(("number", "complaint"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "cannot write")])
def test_a_full_disk_leaves_nothing_behind(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, complaint: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(token_file.TokenWriter, "add", fail)
    with pytest.raises(UserError, match=complaint):
        prepare(book, BYTES, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_made(book: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        prepare(book, BYTES, book / "cache")


@pytest.mark.parametrize("valid", [-0.1, 1.0])
def test_shares_that_are_none(book: Path, tmp_path: Path, valid: float) -> None:
    with pytest.raises(UsageError, match="valid="):
        prepare(book, BYTES, tmp_path, valid=valid)


def test_token_files_that_are_none(book: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        TokenFile(tmp_path / "none.bin")
    file = prepare_files(book, BYTES, tmp_path)
    with file.path.open("r+b") as stream:
        stream.truncate(10)
    with pytest.raises(UserError, match="cut short"):
        prepare_files(book, BYTES, tmp_path)
    file.path.with_suffix(".json").write_text("{}")
    with pytest.raises(UserError, match="does not describe"):
        TokenFile(file.path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "object"), ("dtype", "float64"), ("dtype", ["uint16"]), ("tokens", -1), ("tokens", "3"), ("tokens", 1.5),
        ("bytes", None), ("documents", {}), ("tokens", 10**19),
    ],
)  # fmt: skip
def test_descriptions_that_are_none(book: Path, tmp_path: Path, field: str, value: object) -> None:
    path = prepare_files(book, ByteTokenizer(), tmp_path / "cache", progress=False).path.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(UserError, match="does not describe a token file"):
        TokenFile(path.with_suffix(".bin"))


def test_damaged_tokens_are_not_used_again(book: Path, tmp_path: Path) -> None:
    file = prepare_files(book, ByteTokenizer(), tmp_path / "cache", progress=False)
    whole = file.path.read_bytes()
    for position, byte, complaint in ((101, b"\x7f", "has token 32.*only 256"), (0, b"?", "checksum")):
        file.path.write_bytes(whole[:position] + byte + whole[position + 1 :])
        with pytest.raises(UserError, match=complaint):
            prepare_files(book, ByteTokenizer(), tmp_path / "cache", progress=False)
    file.path.write_bytes(whole)
    prepare_files(book, ByteTokenizer(), tmp_path / "cache", progress=False)

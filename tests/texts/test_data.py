"""Files to documents, documents to token files, token files to batches: nothing lost, nothing read twice."""

import codecs
import errno
import gzip
import json
import lzma
import os
import random
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from spikegpt.data import corpus, encode, token_file
from spikegpt.data import tokens as data
from spikegpt.data.batches import Windows, sequential
from spikegpt.data.corpus import cut_between_words, documents, expand, pieces
from spikegpt.data.token_file import TokenFile
from spikegpt.data.tokens import prepare, prepare_files
from spikegpt.errors import UsageError, UserError
from spikegpt.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer, train_bpe

BYTES = ByteTokenizer()
BOOKS = [f"Book {i}: " + "né à Paris, he sat.\n\nThe end. " * (3 + i % 7) + "\n" * (3 + i % 3) for i in range(40)]
TEXT = "".join(BOOKS)


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return train_bpe([TEXT], 300)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return write(tmp_path / "book.txt", TEXT)


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


# expand


def test_folders_and_patterns_give_what_can_be_read(tmp_path: Path) -> None:
    names = ["a.txt", "b.md", "c.py", "d.jsonl", "e.txt.gz", "sub/f.txt.xz", "g.bin", ".h.txt", ".git/i.txt", "j"]
    for name in names:
        write(tmp_path / name, "x")
    found = [str(file.relative_to(tmp_path)) for file in expand(tmp_path)]
    assert found == ["a.txt", "b.md", "c.py", "d.jsonl", "e.txt.gz", "sub/f.txt.xz"]
    assert expand(tmp_path / "**/*.xz") == [tmp_path / "sub/f.txt.xz"]
    assert expand([tmp_path / "b.md", tmp_path / "*.md", str(tmp_path / "a.txt")]) == [
        tmp_path / "b.md",
        tmp_path / "a.txt",
    ]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("none.txt", "does not exist"),
        ("a.bin", "unknown kind; readable are .txt"),
        ("a.bin.gz", "unknown kind"),
        ("empty", "no text in the folder"),
        ("*.txt", "nothing readable matches"),
    ],
)
def test_paths_without_text(tmp_path: Path, name: str, complaint: str) -> None:
    write(tmp_path / "a.bin", "x")
    write(tmp_path / "a.bin.gz", "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=complaint):
        expand(tmp_path / name)
    with pytest.raises(UserError, match="no text was given"):
        expand([])


# documents


@pytest.mark.parametrize("pack", [None, gzip.compress, lzma.compress])
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_documents_join_to_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack, block: int) -> None:
    monkeypatch.setattr(corpus, "_BLOCK", block)
    suffix = {None: "", gzip.compress: ".gz", lzma.compress: ".xz"}[pack]
    raw = TEXT.encode()
    path = write(tmp_path / f"a.txt{suffix}", pack(raw) if pack else raw)
    assert list(documents(path)) == BOOKS


def test_the_separator_is_the_callers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one.\n--\ntwo\n\n\n.three\n--\n")
    assert list(documents(path, separator="--\n")) == ["one.\n--\n", "two\n\n\n.three\n--\n"]
    assert list(documents(path, separator=None)) == ["one.\n--\ntwo\n\n\n.three\n--\n"]


def test_code_and_markdown_are_one_document(tmp_path: Path) -> None:
    for name in ("a.py", "b.md"):
        write(tmp_path / name, "x\n\n\ny")
    assert list(documents(tmp_path)) == ["x\n\n\ny"] * 2


def test_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "é\n\n\nb", "id": 1}), "", json.dumps({"text": "c\n"})]
    assert list(documents(write(tmp_path / "a.jsonl", "\n".join(lines)))) == ["é\n\n\nb\n", "c\n"]


NO_TEXT = ['{"txt": "a"}', "{", '{"text": 3}', '["text"]', "7", b'{"text": "\xff"}', "[" * 100_000]


@pytest.mark.parametrize("line", NO_TEXT, ids=lambda line: line[:12])
def test_a_json_line_without_text_is_left_out_and_said_once(tmp_path: Path, line: str | bytes) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    write(tmp_path / "a.jsonl", b'{"text": "a"}\n\n' + raw + b"\n" + raw + b'\n{"text": "b"}')
    write(tmp_path / "b.txt", "c")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            assert list(documents(tmp_path)) == ["a\n", "b\n", "c"]
    assert len(said) == 1
    assert re.search(r"a\.jsonl: left out 2 of 4 lines: line 3 is not a JSON object", str(said[0].message))


@pytest.mark.parametrize("line", NO_TEXT, ids=lambda line: line[:12])
def test_json_lines_without_any_text_are_refused(tmp_path: Path, line: str | bytes) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(UserError, match=r"line 2 of .*a\.jsonl is not a JSON object .* no other"):
        list(documents(write(tmp_path / "a.jsonl", b"\n" + raw + b"\n" + raw)))


def test_half_a_surrogate_pair_in_json_is_replaced_and_said_once(tmp_path: Path) -> None:
    lines = [r'{"text": "whole \ud83d\ude42"}', r'{"text": "half \ud83d of"}', r'{"text": "\ude42\ud83d"}']
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    with pytest.warns(UserWarning, match=r"2 lines hold half a surrogate pair.*line 2") as said:
        assert list(documents(path)) == ["whole 🙂\n", "half \ufffd of\n", "\ufffd\ufffd\n"]
    assert len(said) == 1


def test_a_line_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LONGEST_LINE", 40)
    fits = json.dumps({"text": "x" * 27})
    for end in ("", "\n"):
        path = write(tmp_path / "a.jsonl", f"{json.dumps({'text': 'y' * 300})}\n{fits}\n{fits}z{end}")
        with pytest.warns(UserWarning, match="left out 2 of 3 lines: line 1"):
            assert list(documents(path)) == ["x" * 27 + "\n"]


@pytest.mark.parametrize("block", [1, 2, 1 << 20])
def test_a_byte_order_mark_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(corpus, "_BLOCK", block)
    for name, raw in (("a.txt", b"one\n\n\ntwo"), ("b.jsonl", b'{"text": "c"}\n{"text": "d"}'), ("c.md", b"")):
        plain, marked = write(tmp_path / name, raw), write(tmp_path / f"marked-{name}", codecs.BOM_UTF8 + raw)
        assert list(documents(plain)) == list(documents(marked))
    assert list(documents(write(tmp_path / "d.txt", "a\ufeffb"))) == ["a\ufeffb"]
    with pytest.raises(UserError, match="byte 5 is not UTF-8"):
        list(documents(write(tmp_path / "e.txt", codecs.BOM_UTF8 + b"ab\xff")))
    with pytest.raises(UserError, match="UTF-16"):
        list(documents(write(tmp_path / "f.txt", "windows".encode("utf-16"))))


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"ab\xc3\xa9\xff cd", "byte 4 is not UTF-8"),
        (b"ab\xe6\x97", "byte 2 is not UTF-8"),
        (b"abc\xc3\xa9d\0e", "byte 6 is zero"),
    ],
)
def test_what_is_not_text_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, raw: bytes, complaint: str
) -> None:
    monkeypatch.setattr(corpus, "_BLOCK", block)
    path = write(tmp_path / "a.txt", raw)
    with pytest.raises(UserError, match=complaint):
        list(documents(path))
    assert "".join(documents(path, errors="replace")) == raw.replace(b"\0", "\ufffd".encode()).decode(
        "utf-8", "replace"
    )


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_damaged_archives(tmp_path: Path, suffix: str, pack) -> None:
    raw = pack(random.Random(0).randbytes(1000).hex().encode())
    for damaged in (raw[:-20], b"not packed at all"):
        with pytest.raises(UserError, match="damaged or cut short"):
            list(documents(write(tmp_path / f"a.txt{suffix}", damaged)))


def test_a_long_document_is_cut_into_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LONGEST_DOCUMENT", 50)
    path = write(tmp_path / "a.txt", TEXT)
    found = list(documents(path))
    assert "".join(found) == TEXT
    assert max(map(len, found)) <= 50
    for block in (1, 64, 100):
        monkeypatch.setattr(corpus, "_BLOCK", block)
        assert list(documents(path)) == found


def test_a_cut_between_words_changes_no_token(bpe: BPETokenizer) -> None:
    text = TEXT + "  two  spaces \n x\ty's 'a' 12 34\n"
    whole = bpe.encode(text)
    for limit in (20, 33, 100, 1000):
        parts = list(pieces(text, limit))
        assert "".join(parts) == text and max(map(len, parts)) <= limit and len(parts) > 1
        assert np.concatenate(bpe.encode_many(parts)).tolist() == whole.tolist()


@pytest.mark.parametrize(("text", "cut"), [("aaaa bb b", 7), ("aaaaaa\nbb", 7), ("aaaaaaaaa", 7), ("aaaa  bbb", 7)])
def test_where_a_text_is_cut(text: str, cut: int) -> None:
    assert cut_between_words(text, 7) == cut


# prepare


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


# batches


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


def test_windows_are_of_the_text(tmp_path: Path) -> None:
    windows = Windows(tokens_of(tmp_path, 1000), 8, 32, seed=0)
    x, y = windows.next_batch()
    assert x.shape == y.shape == (8, 32) and x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(y, x % 126 + 1), "each id is followed by the next"
    assert not torch.equal(windows.next_batch()[0], x)


def test_every_place_is_read_and_none_beyond(tmp_path: Path) -> None:
    windows = Windows(tokens_of(tmp_path, 12), 500, 8, seed=0)
    assert set(windows.next_batch()[0][:, 0].tolist()) == {1, 2, 3, 4}


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    file = tokens_of(tmp_path, 5000)
    first, again, other = (Windows(file, 4, 16, seed=seed).next_batch()[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_processes_read_the_whole_batch_between_them(tmp_path: Path) -> None:
    file = tokens_of(tmp_path, 5000)
    whole = Windows(file, 6, 16, seed=3)
    parts = [Windows(file, 2, 16, seed=3, rank=rank, world=3) for rank in range(3)]
    for _ in range(4):
        x, y = whole.next_batch()
        xs, ys = zip(*(part.next_batch() for part in parts), strict=True)
        assert torch.equal(torch.cat(xs), x) and torch.equal(torch.cat(ys), y)


def test_windows_go_on_where_they_stopped(tmp_path: Path) -> None:
    file = tokens_of(tmp_path, 5000)
    windows = Windows(file, 4, 16, seed=5)
    for _ in range(3):
        windows.next_batch()
    state = json.loads(json.dumps(windows.state_dict()))
    expected = [windows.next_batch()[0] for _ in range(3)]
    resumed = Windows(file, 4, 16, seed=5)
    resumed.load_state_dict(state)
    assert all(torch.equal(resumed.next_batch()[0], batch) for batch in expected)


@pytest.mark.parametrize(
    ("name", "change"), [("seed", {"seed": 6}), ("batch", {"batch_size": 3}), ("context", {"context": 8})]
)
def test_other_windows_do_not_resume(tmp_path: Path, name: str, change: dict[str, int]) -> None:
    file = tokens_of(tmp_path, 5000)
    how = {"batch_size": 4, "context": 16, "seed": 5}
    with pytest.raises(UserError, match=f"{name} was"):
        Windows(file, **(how | change)).load_state_dict(Windows(file, **how).state_dict())
    with pytest.raises(UserError, match="data was"):
        Windows(tokens_of(tmp_path, 5001), **how).load_state_dict(Windows(file, **how).state_dict())


def test_text_shorter_than_a_context(tmp_path: Path) -> None:
    file = tokens_of(tmp_path, 16)
    assert Windows(file, 1, 15, seed=0).next_batch()[0].shape == (1, 15)
    with pytest.raises(UserError, match="shorter than a context: 16 tokens"):
        Windows(file, 1, 16, seed=0)


@pytest.mark.parametrize("chunk", [1, 7, 99, 100, 1000])
def test_sequential_reads_every_token_once(tmp_path: Path, chunk: int) -> None:
    file = tokens_of(tmp_path, 100)
    xs, ys = zip(*sequential(file, chunk), strict=True)
    assert torch.cat(xs, 1)[0].tolist() == file.ids[:-1].tolist()
    assert torch.cat(ys, 1)[0].tolist() == file.ids[1:].tolist()
    assert all(x.shape == (1, chunk) for x in xs[:-1])

"""Files to documents: nothing lost, what is no text refused or left out and said."""

import codecs
import gzip
import json
import lzma
import random
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from books import BOOKS, TEXT, write

from spikegpt.data import corpus
from spikegpt.data.corpus import cut_between_words, documents, expand, pieces
from spikegpt.errors import UserError
from spikegpt.tokenizer import BPETokenizer


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

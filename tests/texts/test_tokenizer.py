"""Text -> ids -> text for each kind, the files they are saved in, and streams of half characters."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED

from spikegpt.errors import UsageError, UserError
from spikegpt.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    StreamDecoder,
    Tokenizer,
    load_reference_vocabulary,
    load_tokenizer,
    train_bpe,
)

NEOX = SHARED / "data/tokenizers/20B_tokenizer.json"
needs_neox = pytest.mark.skipif(not NEOX.exists(), reason="the GPT-NeoX tokenizer is not at ../shared")

PROSE = "The cat sat on the mat.\n\nThe mat, it's said, sat under 12 cats;  they\tdidn't mind.\r\n\n\n" * 20
ODD = "naïve café — 日本語 🙂👩‍👩‍👧 \u0301x \x00\x7f \u00ad\u0100\ufffd <|endoftext|>  \n \n\n   end  "


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return train_bpe([PROSE], 280)


@pytest.fixture(params=["bytes", "chars", "bpe"])
def tokenizer(request: pytest.FixtureRequest, bpe: BPETokenizer) -> Tokenizer:
    return {"bytes": ByteTokenizer(), "chars": CharTokenizer.from_texts([PROSE, ODD]), "bpe": bpe}[request.param]


@pytest.mark.parametrize("text", ["", "a", PROSE, ODD, "\n\n\n", " "])
def test_text_survives(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids.tolist()) == text
    assert b"".join(tokenizer.token_bytes(id) for id in ids) == text.encode()


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_survives(bpe: BPETokenizer, text: str) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_byte_is_its_own_id() -> None:
    assert ByteTokenizer().encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert [ByteTokenizer().token_bytes(id) for id in range(256)] == [bytes([id]) for id in range(256)]


def test_a_character_is_its_position() -> None:
    assert CharTokenizer("ba🙂é").encode("é🙂ab").tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("char", ["c", "é", "🙂", "\ud800"])
def test_an_unknown_character_is_named(char: str) -> None:
    with pytest.raises(UserError, match=rf"U\+{ord(char):04X}"):
        CharTokenizer("ab").encode("ab" + char)


@pytest.mark.parametrize(("chars", "complaint"), [([], "at least one"), (["ab"], "'ab'"), (["a", "b", "a"], "'a'")])
def test_lists_that_are_no_characters(chars: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        CharTokenizer(chars)


def test_half_a_surrogate_pair_is_no_text(bpe: BPETokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        with pytest.raises(UserError, match="position 1"):
            tokenizer.encode("a\ud800")


@pytest.mark.parametrize("id", [-1, 280, 10**9])
def test_an_id_outside_the_vocabulary_is_refused(bpe: BPETokenizer, id: int) -> None:
    with pytest.raises(UserError, match=f"token {id} .* 280"):
        bpe.decode([id])


def test_saved_file_gives_the_same_ids_to_the_library(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tokenizer.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    library = tokenizers.Tokenizer.from_file(str(path))
    assert library.get_vocab_size() == tokenizer.vocab_size
    for text in (PROSE, ODD):
        ids = library.encode(text, add_special_tokens=False).ids
        assert ids == tokenizer.encode(text).tolist()
        assert library.decode(ids, skip_special_tokens=False) == text


def test_saved_file_loads_as_the_same_kind(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tokenizer.save(tmp_path)
    for source in (tmp_path, path):
        loaded = load_tokenizer(source)
        assert (loaded.kind, loaded.vocab_size, loaded.eos_id) == (
            tokenizer.kind,
            tokenizer.vocab_size,
            tokenizer.eos_id,
        )
        assert loaded.digest == tokenizer.digest
        assert loaded.encode(ODD).tolist() == tokenizer.encode(ODD).tolist()


def test_saved_file_reads_in_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    other = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer.save(tmp_path)))
    assert other(ODD, add_special_tokens=False)["input_ids"] == tokenizer.encode(ODD).tolist()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "cannot read"),
        ("not json", "not a tokenizer"),
        ("[1]", "not a tokenizer"),
        ('{"model": {"type": "Unigram", "vocab": []}}', "Unigram"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "nonsense": 1}', "can be read"),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path: Path, text: str | None, complaint: str) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=complaint) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_bpe_that_is_not_of_bytes_is_refused(tmp_path: Path) -> None:
    tokenizers.Tokenizer(tokenizers.models.BPE({"▁a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="byte-level"):
        load_tokenizer(tmp_path)


def test_bpe_training_is_deterministic_and_compresses(bpe: BPETokenizer) -> None:
    assert train_bpe(iter([PROSE]), 280).to_json() == bpe.to_json()
    assert bpe.vocab_size == 280 and bpe.eos_id == 0
    assert bpe.token_bytes(0) == b"<|endoftext|>"
    assert sorted(bpe.token_bytes(id) for id in range(1, 257)) == [bytes([value]) for value in range(256)]
    assert len(bpe.encode(PROSE)) < len(PROSE) / 2


def test_bpe_needs_room_for_every_byte() -> None:
    with pytest.raises(UsageError, match="257"):
        train_bpe([PROSE], 256)


def test_line_ends_are_words_of_their_own(bpe: BPETokenizer) -> None:
    whole = bpe.encode("said\n\n\nThe cat\n mat")
    parts = [bpe.encode(part) for part in ("said\n\n\n", "The cat", "\n", " mat")]
    assert whole.tolist() == np.concatenate(parts).tolist()


def test_many_texts_as_one_by_one(tokenizer: Tokenizer) -> None:
    texts = [PROSE, "", ODD, "mat"]
    assert [ids.tolist() for ids in tokenizer.encode_many(texts)] == [tokenizer.encode(text).tolist() for text in texts]


@needs_neox
def test_gpt_neox() -> None:
    neox = load_tokenizer(NEOX)
    assert (neox.vocab_size, neox.eos_id) == (50277, 0)
    assert neox.encode("Hello world").tolist() == [12092, 1533]
    assert neox.token_bytes(0) == b"<|endoftext|>" and neox.token_bytes(50276) == b"  "
    text = unicodedata.normalize("NFC", PROSE + ODD)
    assert neox.decode(neox.encode(text)) == text
    library = tokenizers.Tokenizer.from_file(str(NEOX))
    ids = library.encode(text, add_special_tokens=False).ids
    assert ids == neox.encode(text).tolist()
    assert library.decode(ids, skip_special_tokens=False) == neox.decode(ids)


def test_the_reference_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"0": "\n", "2": "é", "1": "🙂"}, ensure_ascii=False), encoding="utf-16")
    assert load_reference_vocabulary(path).chars == ["\n", "🙂", "é"]


@pytest.mark.parametrize(
    ("text", "encoding", "complaint"),
    [("{}x", "utf-16", "UTF-16 JSON"), ("[]", "utf-16", "UTF-16 JSON"), ('{"0": "a", "2": "b"}', "utf-16", "0 to 1")],
)
def test_files_that_are_no_reference_vocabulary(tmp_path: Path, text: str, encoding: str, complaint: str) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(text, encoding=encoding)
    with pytest.raises(UserError, match=complaint):
        load_reference_vocabulary(path)


def test_a_missing_reference_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        load_reference_vocabulary(tmp_path / "none.json")


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_a_stream_gives_whole_characters_only(text: str) -> None:
    tokenizer = ByteTokenizer()
    stream = StreamDecoder(tokenizer)
    pieces = [stream.push(id) for id in tokenizer.encode(text).tolist()]
    assert [piece for piece in pieces if piece] == list(text)
    assert stream.flush() == ""


def test_a_stream_replaces_what_is_no_character() -> None:
    stream = StreamDecoder(ByteTokenizer())
    assert [stream.push(byte) for byte in b"\xc3\xa9"] == ["", "é"]
    assert [stream.push(byte) for byte in b"\xe6\x97"] == ["", ""]
    assert stream.push(ord("a")) == "\ufffda"
    assert stream.push(0xFF) == "\ufffd"
    assert stream.push(0xF0) == "" and stream.flush() == "\ufffd"
    assert stream.push(ord("b")) == "b" and stream.flush() == ""

"""Tokenizers that other programs wrote: the file's ids, every text back, or one line that names what is lost."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from spikegpt.errors import UserError
from spikegpt.tokenizer import PADDING, BPETokenizer, CharTokenizer, load_tokenizer
from spikegpt.tokenizer import loading as loading

ENGLISH = "To be, or not to be, that is the question.\n\nIt's 12 cats;  they\tsat.\n" * 30
ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def learn(*, alphabet=ALPHABET, text=ENGLISH, special=("<|endoftext|>",), **parts) -> Library:
    """A byte-level BPE as the library's tutorials make it; `parts` replace those of its pipeline."""
    made = Library(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(made, name, part)
    made.train_from_iterator(
        [text],
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        ),
    )
    return made


def characters(ids: dict[str, int], **parts) -> Library:
    made = Library(models.WordLevel(ids, unk_token=""))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def load(made: Library, folder: Path):
    made.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


# Bytes without a token


def test_a_character_without_tokens_is_named_and_never_dropped(tmp_path: Path) -> None:
    library = learn(alphabet=[])
    tokenizer = load(library, tmp_path)
    assert tokenizer.encode("To be, or not").tolist() == library.encode("To be, or not").ids
    assert library.encode("猫").ids == []
    for text, char in (("To be 猫 or", "猫"), ("TO BE", "O"), ("é", "é"), ("To be\0", "\0")):
        with pytest.raises(UserError, match=rf"no token for .*U\+{ord(char):04X}"):
            tokenizer.encode(text)
        with pytest.raises(UserError, match=rf"U\+{ord(char):04X}"):
            tokenizer.encode_many(["To be", text])


def test_unknown_tokens_do_not_stand_for_what_they_hide(tmp_path: Path) -> None:
    library = Library(models.BPE(unk_token="<u>", fuse_unk=True))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<u>"], show_progress=False)
    library.train_from_iterator([ENGLISH], trainer)
    assert library.encode("猫").tokens == ["<u>"], "as many bytes as the character"
    with pytest.raises(UserError, match=r"U\+732B"):
        load(library, tmp_path).encode("猫")


# Pipelines that lose or change


@pytest.mark.parametrize(
    ("parts", "lost"),
    [
        (dict(normalizer=normalizers.Lowercase()), "'A'"),
        (dict(normalizer=normalizers.NFKC()), "'²'|'ﬁ'"),
        (dict(normalizer=normalizers.StripAccents()), "."),
        (dict(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])), "'A'"),
        (dict(normalizer=normalizers.Strip()), r"' '|'\\n'|'\\t'"),
        (dict(normalizer=normalizers.Replace("cat", "dog")), "Replace"),
        (dict(normalizer=normalizers.Prepend("x")), "."),
        (dict(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)), "."),
        (
            dict(
                pre_tokenizer=pre_tokenizers.Sequence(
                    [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
                )
            ),
            r"' '|'\\t'|'\\n'",
        ),
        (
            dict(
                pre_tokenizer=pre_tokenizers.Sequence(
                    [pre_tokenizers.Split("z", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
                )
            ),
            "'z'",
        ),
        (dict(pre_tokenizer=pre_tokenizers.Metaspace()), "."),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(repr, value.values()))[:40],
)
def test_pipelines_that_lose_characters_are_refused(parts, lost: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=lost) as error:
        load(learn(**parts), tmp_path)
    assert "tokenizer.json" in str(error.value) and "\n" not in str(error.value)


def test_what_no_probe_finds_is_found_where_it_happens(tmp_path: Path) -> None:
    removed = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("cats", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer = load(learn(pre_tokenizer=removed), tmp_path)
    assert tokenizer.decode(tokenizer.encode("12 dogs")) == "12 dogs"
    with pytest.raises(UserError, match=r"'c' \(U\+0063\) at position 3"):
        tokenizer.encode("12 cats")


@pytest.mark.parametrize("normalizer", [normalizers.NFC(), normalizers.NFD()])
@settings(max_examples=60, deadline=None)
@given(text=st.text())
def test_composing_is_no_loss(tmp_path_factory, normalizer, text: str) -> None:
    folder = tmp_path_factory.mktemp("composing")
    tokenizer = load(learn(normalizer=normalizer), folder)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == normalizer.normalize_str(text)
    assert unicodedata.normalize("NFC", tokenizer.decode(ids)) == unicodedata.normalize("NFC", text)
    assert tokenizer.text_bytes(ids) == len(tokenizer.decode(ids).encode())


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(st.sampled_from("ab猫é🙂 \n\t'1\0\u0301<|endoftext>"), max_size=40), drop=st.sets(st.integers(0, 255))
)
def test_any_text_comes_back_or_is_refused(tmp_path_factory, text: str, drop: set[int]) -> None:
    alphabet = [symbol for number, symbol in enumerate(sorted(ALPHABET)) if number not in drop]
    tokenizer = load(learn(alphabet=alphabet, text="a "), tmp_path_factory.mktemp("any"))
    try:
        ids = tokenizer.encode(text)
    except UserError as error:
        assert "no token for" in str(error)
    else:
        assert tokenizer.decode(ids) == text


def test_merges_are_not_left_out_at_random(tmp_path: Path) -> None:
    made = learn()
    made.model.dropout = 0.5
    tokenizer = load(made, tmp_path)
    assert len({tuple(tokenizer.encode(ENGLISH).tolist()) for _ in range(5)}) == 1


# Ids


def test_characters_keep_the_ids_of_the_file(tmp_path: Path) -> None:
    library = characters({char: 3 * place + 1 for place, char in enumerate("abcdefgh 猫")})
    tokenizer = load(library, tmp_path)
    text = "bad cafe 猫"
    assert isinstance(tokenizer, CharTokenizer)
    assert tokenizer.encode(text).tolist() == library.encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == 29 and tokenizer.token_bytes(0) == tokenizer.token_bytes(2) == b""
    tokenizer.save(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.encode(text).tolist() == library.encode(text).ids and again.digest == tokenizer.digest
    saved = Library.from_file(str(tmp_path / "again/tokenizer.json"))
    assert saved.encode(text).ids == library.encode(text).ids
    assert saved.token_to_id(PADDING) == 0 and saved.get_vocab_size() == tokenizer.vocab_size


def test_names_of_ids_that_are_no_characters_stay(tmp_path: Path) -> None:
    tokenizer = load(characters({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}), tmp_path)
    assert tokenizer.encode("ab").tolist() == [2, 3]
    tokenizer.save(tmp_path / "again")
    assert Library.from_file(str(tmp_path / "again/tokenizer.json")).get_vocab() == {
        "[PAD]": 0,
        "[UNK]": 1,
        "a": 2,
        "b": 3,
    }


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (characters({"a": 0, "b": 1}, pre_tokenizer=pre_tokenizers.Whitespace()), "cannot|can be read"),
        (characters({"a": 0, "A": 1}, normalizer=normalizers.Lowercase()), "character by character"),
        (Library(models.WordLevel({f"word{i}": i for i in range(99)} | {"a": 99}, unk_token="")), "words"),
    ],
)
def test_vocabularies_that_are_read_otherwise_are_refused(made: Library, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=complaint):
        load(made, tmp_path)


def test_characters_with_tokens_of_several_characters_are_refused(tmp_path: Path) -> None:
    made = characters({"a": 0, "b": 1})
    made.add_tokens(["ab"])
    with pytest.raises(UserError, match="added tokens .ab."):
        load(made, tmp_path)


def test_ids_of_a_bpe_may_have_gaps(tmp_path: Path) -> None:
    spec = json.loads(learn().to_str())
    spec["model"]["vocab"] = {token: 2 * id for token, id in spec["model"]["vocab"].items()}
    spec["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode(ENGLISH)) == ENGLISH
    assert all(id % 2 == 0 for id in tokenizer.encode(ENGLISH)) and tokenizer.token_bytes(1) == b""


# Special tokens


def test_only_a_token_that_text_never_gives_ends_a_text(tmp_path: Path) -> None:
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ordinary = load(learn(text="</s>", special=(), pre_tokenizer=whole), tmp_path)
    assert len(ordinary.encode("</s>")) == 1 and ordinary.eos_id is None
    marked = load(learn(special=("[X]", "</s>")), tmp_path)
    assert marked.eos_id == 1
    spec = json.loads(learn().to_str())
    spec["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    unreachable = load_tokenizer(tmp_path)
    assert unreachable.eos_id == 0 and len(unreachable.encode("<|endoftext|>")) > 1


def test_the_end_of_text_stands_for_no_bytes(tmp_path: Path) -> None:
    tokenizer = load(learn(special=("<|endoftext|>", "<|other|>")), tmp_path)
    text = "To be.<|endoftext|>猫<|endoftext|><|other|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and list(ids).count(tokenizer.eos_id) == 2
    assert tokenizer.text_bytes(ids) == len("To be.猫<|other|>".encode())


def test_a_text_begins_after_a_token_that_is_in_use(tmp_path: Path) -> None:
    assert load(characters({"a": 3, "b": 5}), tmp_path).start_id == 3
    assert load(characters({"a": 3, "\n": 5}), tmp_path).start_id == 5
    assert load(learn(special=("[X]", "<|endoftext|>")), tmp_path).start_id == 1


def test_padding_that_transformers_added_is_no_token_of_the_model(tmp_path: Path) -> None:
    made = learn()
    size = load(made, tmp_path).vocab_size
    made.add_special_tokens([PADDING])
    assert made.token_to_id(PADDING) == size
    assert load(made, tmp_path).vocab_size == size
    chars = characters({"a": 0, "b": 1})
    chars.add_special_tokens([PADDING])
    assert load(chars, tmp_path).vocab_size == 2


# Files


def test_a_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\xef\xbb\xbf" + learn().to_str().encode())
    assert isinstance(load_tokenizer(path), BPETokenizer)


SPEC = json.loads(learn().to_str())


def spec_with(**changes) -> str:
    spec = json.loads(json.dumps(SPEC))
    spec["model"].update(changes)
    return json.dumps(spec)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000, '{"model":' * 200_000, "", "7", "null", "{}", '{"model": 3}', '{"model": {"type": "BPE"}}',
        spec_with(vocab=None), spec_with(vocab=[]), spec_with(vocab={}), spec_with(vocab={"a": 10**9}),
        spec_with(vocab={"a": 1 << 21}), spec_with(vocab={"a": -1}), spec_with(vocab={"a": 10**400}),
        spec_with(vocab={"a": 0.5}), spec_with(vocab={"a": True}), spec_with(vocab={"a": [1]}),
        spec_with(vocab={"a": 0, "b": 0}), spec_with(merges=[["a", "nothing"]]), spec_with(merges=3),
        spec_with(type="WordLevel", vocab=["a"]), spec_with(type="WordLevel", vocab={}), spec_with(type=["BPE"]),
        json.dumps(SPEC | {"added_tokens": [{"id": 10**12, "content": "x"}]}),
        json.dumps(SPEC | {"added_tokens": 3}), json.dumps(SPEC | {"added_tokens": [3]}),
        json.dumps(SPEC | {"added_tokens": [{}]}), json.dumps(SPEC | {"normalizer": 3}),
        json.dumps(SPEC | {"normalizer": {"type": "Sequence", "normalizers": {"a": 1}}}),
    ],
    ids=lambda text: text[-30:],
)  # fmt: skip
def test_nothing_in_a_file_is_believed(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500 + len(str(tmp_path))


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LARGEST_FILE", 100)
    with pytest.raises(UserError, match="too much for a tokenizer"):
        load(learn(), tmp_path)

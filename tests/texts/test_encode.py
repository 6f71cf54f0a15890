"""One way from files to token ids: token files, evaluation, profiling and traces read the same tokens."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import make_model

from spikegpt.config import TrainConfig
from spikegpt.data import corpus
from spikegpt.data.tokens import prepare_files
from spikegpt.errors import UsageError
from spikegpt.evaluation import evaluate, evaluate_files
from spikegpt.profiling.counts import profile
from spikegpt.profiling.trace import texts, trace
from spikegpt.tokenizer import train_bpe
from spikegpt.training.language import _evaluate

END = "<|endoftext|>"
PARTS = ["The cat sat.\n\n\nThe cat", f"a literal {END} and {END}{END}", "猫 sat\n"]


@pytest.fixture(scope="module")
def model():
    return make_model("after", tokenizer=train_bpe(["The cat sat on a literal mat. " * 9], 290))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, text in zip(("a.txt", "b.md", "c.jsonl"), PARTS, strict=True):
        raw = f'{{"text": "{text.strip()}"}}\n' * 2 if name == "c.jsonl" else text
        (tmp_path / name).write_text(raw, encoding="utf-8")
    return [tmp_path]


def expected(tokenizer) -> list[int]:
    whole = PARTS[0] + END + PARTS[1] + END + (PARTS[2] + END) * 2
    return tokenizer.encode(whole).tolist()


def test_every_consumer_reads_the_same_tokens(model, files, tmp_path: Path) -> None:
    tokenizer, ids = model.tokenizer, expected(model.tokenizer)
    n_bytes = sum(len(part.encode()) for part in [*PARTS, PARTS[2]]) - 3 * len(END)
    file = prepare_files(files, tokenizer, tmp_path / "cache", progress=False)
    assert file.ids.tolist() == ids and file.n_bytes == n_bytes
    evaluation = evaluate_files(model, files)
    assert (evaluation.tokens, evaluation.bytes) == (len(ids), n_bytes)
    assert profile(model, files).tokens == len(ids)
    assert trace(model, texts(None, files), tmp_path / "out.npz").tokens == len(ids)
    assert np.load(tmp_path / "out.npz")["tokens"].tolist() == ids


def test_counts_of_a_part_are_those_of_the_same_tokens(model, files) -> None:
    ids = np.array(expected(model.tokenizer))
    for limit in (1, 7, len(ids), 999):
        by_files, by_ids = profile(model, files, tokens=limit), profile(model, ids, tokens=limit)
        assert by_files == by_ids and by_files.tokens == min(limit, len(ids))


def test_training_measures_held_out_text_as_eval_does(model, files, tmp_path: Path) -> None:
    file = prepare_files(files, model.tokenizer, tmp_path / "cache", progress=False)
    told = _evaluate(model, file, TrainConfig(eval_tokens=0))
    measured = evaluate_files(model, files)
    assert told["valid_bits_per_byte"] == measured.bits_per_byte
    cut = _evaluate(model, file, TrainConfig(eval_tokens=len(file) - 1))
    assert cut["valid_bits_per_byte"] == pytest.approx(cut["valid_bits_per_token"] * (len(file) - 1) / file.n_bytes), (
        "the last token, which ends a text, stands for no bytes"
    )


def test_a_literal_end_of_text_is_one_and_counts_no_bytes(model) -> None:
    measured = evaluate(model, f"The cat{END}sat\n")
    assert measured.bytes == len("The catsat\n")
    assert measured.tokens == len(model.tokenizer.encode("The cat")) + 1 + len(model.tokenizer.encode("sat\n"))


def test_bpe_learns_nothing_from_a_literal_end_of_text() -> None:
    plain = train_bpe(["The cat sat."] * 30, 300)
    assert train_bpe([f"The cat sat.{END}" * 30], 300).to_json() == plain.to_json()


@pytest.mark.parametrize("source", ["tset.txt", "books/tset.jsonl.xz", "no/such/folder", "../x", "my text.md"])
def test_a_mistyped_path_is_not_evaluated_as_a_text(model, source: str) -> None:
    with pytest.raises(UsageError, match="there is no"):
        evaluate(model, source)


@pytest.mark.parametrize("text", ["and/or so", "a word.", "x = 1 # a.b", "no/such/folder\n", "/" * 2000])
def test_texts_are_evaluated(model, text: str) -> None:
    assert evaluate(model, text).bytes == len(text)


def test_pieces_of_a_stream_are_those_of_the_text() -> None:
    text = "a few words here and  there\n" * 9
    for limit in (5, 17, 40):
        whole = list(corpus.pieces(text, limit))
        for size in (1, 3, 1000):
            assert list(corpus.pieces((text[i : i + size] for i in range(0, len(text), size)), limit)) == whole
    assert list(corpus.pieces([], 5)) == list(corpus.pieces("", 5)) == [""]


_MEASURE = """
import sys
from pathlib import Path

from spikegpt.data import corpus, encode, tokens
from spikegpt.tokenizer import load_tokenizer

# A sixty-fourth of what they are: so a text that is much longer than any of them is still short.
for module, names in ((corpus, ("LONGEST_DOCUMENT", "_BLOCK", "PIECE")), (tokens, ("_BATCH",)), (encode, ("AT_ONCE",))):
    for name in names:
        setattr(module, name, getattr(module, name) >> 6)
encode.PIECE = corpus.PIECE

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) << 10

for path in sys.argv[2:]:
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    tokens.prepare_files(path, load_tokenizer(sys.argv[1]), path + ".cache", progress=False)
    print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("line", ["a word and another ", "x", "猫", '{"text": "one line"}\n'])
def test_memory_of_tokenising_does_not_grow_with_the_text(tmp_path: Path, line: str) -> None:
    train_bpe(["a word and another "], 260).save(tmp_path)
    paths = []
    for size in (1 << 14, 1 << 18, 1 << 20):
        paths.append(tmp_path / f"{size}{'.jsonl' if 'text' in line else '.txt'}")
        paths[-1].write_text(line * (size // len(line)))
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path), *map(str, paths)], check=True, capture_output=True
    )
    _, short, long = map(int, run.stdout.split())
    assert long < short + (8 << 20), f"{short >> 20} MiB for a quarter of the text, {long >> 20} for all of it"

"""Labelled files: every format gives the same rows, and what is wrong with one is told in a line."""

import gzip
import json
import lzma

import numpy as np
import pytest

from spikegpt.data.labelled import detect_task, folds_of, label_counts, read_rows, shared, split, targets_of
from spikegpt.errors import UsageError, UserError
from spikegpt.task import TaskConfig

ROWS = [("a fine day", "good"), ('she said "no"', "bad"), ("rain , rain", "bad")]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def csv_of(path, header="text,label", rows=ROWS):
    lines = ['"' + text.replace('"', '""') + '",' + label for text, label in rows]
    return write(path, "\n".join([header, *lines]) + "\n")


def test_every_format_gives_the_same_rows(tmp_path):
    files = [
        csv_of(tmp_path / "rows.csv"),
        write(tmp_path / "rows.tsv", "id\tLabel\tSentence\n" + "".join(f"1\t{b}\t{a}\n" for a, b in ROWS)),
        write(tmp_path / "rows.jsonl", "".join(json.dumps({"review": a, "target": b}) + "\n\n" for a, b in ROWS)),
        write(tmp_path / "rows.train", "".join(f"{b} {a} \n" for a, b in ROWS)),
    ]
    plain = files[0].read_bytes()
    files += [tmp_path / "rows.csv.gz", tmp_path / "rows.csv.xz"]
    files[-2].write_bytes(gzip.compress(plain))
    files[-1].write_bytes(lzma.compress(plain))
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + plain)
    for file in [*files, tmp_path / "bom.csv"]:
        rows = read_rows(file)
        assert list(zip(rows.texts, rows.labels, strict=True)) == ROWS, file
        assert rows.notes == ()


def test_latin_1_is_read_as_such_and_told_with_the_line(tmp_path):
    path = tmp_path / "rows.all"
    path.write_bytes("1 plain\n0 caf\xe9 cr\xe8me\n".encode("latin-1"))
    rows = read_rows(path)
    assert rows.texts == ["plain", "café crème"]
    assert rows.notes == (f"{path}: line 2 is not UTF-8; the file is read as Latin-1 from there on",)


def test_pairs_are_found_by_name_and_by_number(tmp_path):
    mrpc = write(tmp_path / "m.tsv", '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said "a .\tA b\n')
    assert read_rows(mrpc).texts == [('He said "a .', "A b")]
    cola = write(tmp_path / "c.tsv", "gj04\t1\t\tThe dog ran.\ngj04\t0\t*\tDog the ran.\n")
    rows = read_rows(cola, text=["4"], label="2")
    assert rows.texts == ["The dog ran.", "Dog the ran."]
    assert rows.labels == ["1", "0"]


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("a,label\nx,1\n", {}, r"none of its columns is called text, .*'a', 'label'"),
        ("text,label\nx,1\n", {"label": "mood"}, r"no column 'mood'; it has 'text', 'label'"),
        ("text,label\nx,1\n", {"text": ["3"], "label": "1"}, "has 2 columns, numbered from 1"),
        ("text,label\nx,1\n,0\n", {}, "line 3 of .* has an empty text"),
        ("text,label\nx,1\ny\n", {}, "line 3 of .* has 1 columns; the first has 2"),
        ("text,label\n", {}, "has no rows"),
        ("", {}, "has no rows"),
    ],
)
def test_what_is_wrong_with_a_table_is_told(tmp_path, text, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        read_rows(write(tmp_path / "rows.csv", text), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.jsonl", '{"text": "a", "label": 1}\n{"te', "line 2 of .* is not a JSON object"),
        ("r.jsonl", '{"text": "a", "label": 1}\n{"text": 3, "label": 1}\n', "line 2 of .* has no text under 'text'"),
        ("r.jsonl", "[" * 100_000, "line 1 of .* is not a JSON object"),
        ("r.all", "1 good\nbad\n", "line 2 of .* is not a label, a space and a text"),
    ],
)
def test_what_is_wrong_with_a_line_is_told(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        read_rows(write(tmp_path / name, text))


def test_a_line_longer_than_the_limit_is_refused_before_it_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("spikegpt.data.labelled.LONGEST_LINE", 1000)
    with pytest.raises(UserError, match="line 2 of .* is longer than"):
        read_rows(write(tmp_path / "rows.all", "1 short\n0 " + "x" * 2000 + "\n"))


def test_a_truncated_archive_is_told(tmp_path):
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\n" + b"x,1\n" * 1000)[:-20])
    with pytest.raises(UserError, match="damaged or cut short"):
        read_rows(path)


def rows_of(tmp_path, labels, texts=None):
    lines = [json.dumps({"text": (texts or {}).get(i, f"text {i}"), "label": label}) for i, label in enumerate(labels)]
    return read_rows(write(tmp_path / "rows.jsonl", "\n".join(lines)))


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        (["b", "a", "b", "a"], "single", ("a", "b")),
        ([10, 9, 10, 9], "single", ("9", "10")),
        ([True, False, True, True], "single", ("false", "true")),
        (["a|b", "a", "b", "a"], "multi", ("a", "b")),
        ([["a"], ["a", "b"], ["b"], []], "multi", ("a", "b")),
        ([0.5, 1.0, 2.25, 3.0], "regression", ("value",)),
        (list(range(30)), "regression", ("value",)),
    ],
)
def test_the_kind_of_task_is_found(tmp_path, labels, kind, names):
    task = detect_task(rows_of(tmp_path, labels))
    assert (task.kind, task.labels) == (kind, names)


def test_a_regression_is_standardised(tmp_path):
    rows = rows_of(tmp_path, [1.5, 2.5, 6.5, 9.5])
    task = detect_task(rows)
    targets = targets_of(rows, task)
    assert targets.mean() == pytest.approx(0, abs=1e-6) and targets.std() == pytest.approx(1, rel=1e-6)
    assert task.offset + task.scale * targets[2, 0] == pytest.approx(6.5, rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (["a", "a"], None, "every row has the label 'a'; two are needed"),
        (["a", None], None, "row 2 has no label"),
        ([f"user {i}" for i in range(100)], None, "100 rows have 100 different labels"),
        ([1.5, float("nan"), 2.0], "regression", "row 2 has 'nan', which is no number"),
        ([1.5, "x", 2.0], "regression", "row 2 has 'x', which is no number"),
        ([2.5, 2.5], None, "every target is 2.5"),
        ([["a"], "b"], "single", "row 1 has a list of labels"),
    ],
)
def test_labels_that_cannot_be_learnt_are_told(tmp_path, labels, kind, message):
    with pytest.raises(UsageError, match=message) as caught:
        detect_task(rows_of(tmp_path, labels), kind)
    assert "\n" not in str(caught.value)


def test_a_hundred_thousand_labels_are_refused():
    with pytest.raises(UsageError, match="not 100,000"):
        TaskConfig(labels=tuple(map(str, range(100_000))))


def test_a_label_that_training_never_saw_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"row 2 has the label 'c', which training never saw \(a, b\)"):
        targets_of(rows_of(tmp_path, ["a", "c"]), TaskConfig(labels=("a", "b")))


def test_folds_cover_every_row_once_and_spread_the_labels(tmp_path):
    rows = rows_of(tmp_path, ["a"] * 30 + ["b"] * 70)
    fold = folds_of(rows, 10, seed=3)
    for k in range(10):
        assert label_counts(rows.take(np.flatnonzero(fold == k))) == {"a": 3, "b": 7}
    assert np.array_equal(fold, folds_of(rows, 10, seed=3))
    assert not np.array_equal(fold, folds_of(rows, 10, seed=4))


def test_held_out_rows_are_not_trained_on(tmp_path):
    rows = rows_of(tmp_path, ["a"] * 40 + ["b"] * 60)
    kept, held = split(rows, 0.1, seed=0)
    assert len(held) == 10 and sorted([*kept, *held]) == list(range(100))
    with pytest.raises(UsageError, match="too few to hold out"):
        split(rows.take(range(10)), 0.1, seed=0)


def test_texts_in_two_files_are_counted_whatever_their_spelling(tmp_path):
    one = rows_of(tmp_path, ["a", "b", "a"], {0: "It 's fine .", 1: "no"})
    other = rows_of(tmp_path, ["a", "b"], {0: "it's FINE", 1: "other"})
    assert shared(one, other) == 1
    assert shared(other, one) == 1

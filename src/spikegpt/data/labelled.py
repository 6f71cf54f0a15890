"""Labelled texts on disk: CSV, TSV, JSON lines and `label text` lines, packed or not, to rows of texts and labels."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import UsageError, UserError
from ..task import MOST_LABELS, Kind, TaskConfig, Text
from .corpus import PACKED, open_raw

LONGEST_LINE = 1 << 24
"""Bytes; a longer line is refused before it is in memory."""
TEXTS = (
    "text",
    "sentence",
    "review",
    "content",
    "comment",
    "tweet",
    "question",
    "message",
    "body",
    "document",
    "title",
)
LABELS = ("label", "target", "class", "category", "sentiment", "quality", "rating", "stars", "score", "intent", "y")
PAIRS = (
    ("sentence1", "sentence2"), ("#1 string", "#2 string"), ("premise", "hypothesis"), ("question1", "question2"),
    ("text1", "text2"), ("text_a", "text_b"), ("question", "sentence"), ("query", "passage"),
)  # fmt: skip
_REGRESSION = 20
"""More different whole numbers than this, or any fraction, are a quantity and not names of labels."""


@dataclass(frozen=True)
class Rows:
    """Texts and their labels as the file has them."""

    source: str
    texts: list[Text]
    labels: list[str | list[str] | None]
    """None: the row has no label."""
    notes: tuple[str, ...] = ()
    """What people should be told of how the file was read."""

    @property
    def pairs(self) -> bool:
        """Whether each row has two texts."""
        return bool(self.texts) and isinstance(self.texts[0], tuple)

    def take(self, rows: Iterable[int]) -> Rows:
        """The rows of these numbers, in this order."""
        chosen = list(rows)
        return Rows(self.source, [self.texts[i] for i in chosen], [self.labels[i] for i in chosen])


def read_rows(path: Path, *, text: Sequence[str] = (), label: str | None = None) -> Rows:
    """The rows of a labelled file; a UserError or UsageError names the line, or the columns that there are.

    `.csv`, `.tsv` and `.jsonl` have columns, found by name (`TEXTS`, `LABELS`, `PAIRS`) or named by `text` (two for
    pairs) and `label`; in a file without a header columns are numbered from 1. Any other file has lines of a label, a
    space and the text. What is not UTF-8 is read as Latin-1.
    """
    notes: list[str] = []
    kind = _kind(path)
    try:
        with open_raw(path) as stream:
            lines = _decoded(path, stream, notes)
            if kind in (".jsonl", ".ndjson", ".json"):
                rows = _from_json(path, lines, text, label)
            elif kind in (".csv", ".tsv"):
                rows = _from_table(path, lines, "\t" if kind == ".tsv" else ",", text, label)
            else:
                rows = _from_lines(path, lines, text, label)
            texts, labels = [], []
            for number, row_text, row_label in rows:
                texts.append(_checked_text(path, number, row_text))
                labels.append(row_label)
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged or cut short: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if not texts:
        raise UserError(f"{path} has no rows")
    return Rows(str(path), texts, labels, tuple(notes))


def detect_task(rows: Rows, kind: Kind | None = None) -> TaskConfig:
    """The task that the labels are of: kind (unless given), labels in order, scale of a regression.

    UsageError: a row without a label, one label only, too many to be labels, values that are no numbers in a regression.
    """
    values = [value for value in rows.labels if value is not None]
    if len(values) < len(rows.labels):
        raise UsageError(f"{rows.source}: row {rows.labels.index(None) + 1} has no label; training needs one in each")
    kind = kind or _detected_kind(values)
    if kind == "regression":
        numbers = np.array([_number(rows.source, i, value) for i, value in enumerate(values, 1)])
        spread = float(numbers.std())
        if spread == 0:
            raise UsageError(f"{rows.source}: every target is {numbers[0]:g}; there is nothing to learn")
        return TaskConfig(labels=("value",), kind=kind, pairs=rows.pairs, offset=float(numbers.mean()), scale=spread)
    names = _in_order({name for value in values for name in _names(value)})
    if kind == "single":
        for number, value in enumerate(values, 1):
            if isinstance(value, list):
                raise UsageError(f"{rows.source}: row {number} has a list of labels; say --task multi")
        if len(names) == 1:
            raise UsageError(f"{rows.source}: every row has the label {names[0]!r}; two are needed")
    if len(names) > min(MOST_LABELS, max(2, len(values) // 2)):
        raise UsageError(
            f"{rows.source}: {len(values):,} rows have {len(names):,} different labels (such as {names[0][:40]!r}); that "
            "is no column of labels; name another with --label, or say --task regression for numbers"
        )
    return TaskConfig(labels=tuple(names), kind=kind, pairs=rows.pairs)


def targets_of(rows: Rows, task: TaskConfig) -> np.ndarray:
    """Targets: int64 [N] (single), float32 [N, K] of 0 and 1 (multi), or standardised float32 [N, 1] (regression).

    UsageError: a label that the task does not have, a row without one, one text where pairs are wanted.
    """
    if rows.pairs != task.pairs:
        raise UsageError(
            f"{rows.source} has {'pairs' if rows.pairs else 'single texts'}; the task is of the other kind"
        )
    index = {name: i for i, name in enumerate(task.labels)}
    targets = (
        np.zeros(len(rows.labels), np.int64)
        if task.kind == "single"
        else np.zeros((len(rows.labels), len(task.labels)), np.float32)
    )
    for i, value in enumerate(rows.labels):
        if value is None:
            raise UsageError(f"{rows.source}: row {i + 1} has no label")
        if task.kind == "regression":
            targets[i] = (_number(rows.source, i + 1, value) - task.offset) / task.scale
            continue
        for name in _names(value) if task.kind == "multi" else [value]:
            if not isinstance(name, str) or name not in index:
                known = ", ".join(task.labels[:5]) + (", ..." if len(task.labels) > 5 else "")
                raise UsageError(
                    f"{rows.source}: row {i + 1} has the label {name!r}, which training never saw ({known})"
                )
            if task.kind == "single":
                targets[i] = index[name]
            else:
                targets[i, index[name]] = 1
    return targets


def folds_of(rows: Rows, count: int, seed: int) -> np.ndarray:
    """[N] the fold of each row, 0 to `count` - 1: shuffled by `seed`, every label spread evenly."""
    if not 2 <= count <= len(rows.texts):
        raise UsageError(f"{count} folds cannot be made of {len(rows.texts)} rows")
    generator, fold = np.random.default_rng(seed), np.empty(len(rows.texts), np.int64)
    keys = np.array(["|".join(_names(label)) if label is not None else "" for label in rows.labels])
    if len(np.unique(keys)) > len(keys) // 2:  # a quantity: nothing to spread
        keys[:] = ""
    for key in np.unique(keys):
        inside = generator.permutation(np.flatnonzero(keys == key))
        fold[inside] = np.arange(len(inside)) % count
    return fold


def split(rows: Rows, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on and to hold out, about `fraction` of them, every label spread evenly; both in order."""
    if fraction == 0:
        return np.arange(len(rows.texts)), np.empty(0, np.int64)
    count = max(2, round(1 / fraction))
    if len(rows.texts) < 2 * count:
        raise UsageError(
            f"{rows.source} has {len(rows.texts)} rows, too few to hold out {fraction:.0%}; give more, or --hold-out 0"
        )
    fold = folds_of(rows, count, seed)
    return np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)


def shared(rows: Rows, other: Rows) -> int:
    """How many rows of `rows` have a text that `other` has too, but for case, spaces and punctuation."""
    known = set(map(_bare, other.texts))
    return sum(_bare(text) in known for text in rows.texts)


def _bare(text: Text) -> str:
    joined = text if isinstance(text, str) else "\0".join(text)
    return re.sub(r"[^\w\0]|_", "", joined.casefold())


def _kind(path: Path) -> str:
    name = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return name.suffix.lower()


def _decoded(path: Path, stream: BinaryIO, notes: list[str]) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, UTF-8 or else Latin-1, without a byte order mark."""
    encoding, number = "utf-8", 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise UserError(f"line {number} of {path} is longer than {LONGEST_LINE >> 20} MiB; it is no row of a table")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            yield number, line.decode(encoding)
        except UnicodeDecodeError:
            encoding = "latin-1"
            notes.append(f"{path}: line {number} is not UTF-8; the file is read as Latin-1 from there on")
            yield number, line.decode(encoding)


def _from_table(
    path: Path, lines: Iterator[tuple[int, str]], delimiter: str, text: Sequence[str], label: str | None
) -> Iterator[tuple[int, Text, str | None]]:
    """Rows of CSV (quotes as usual) or TSV (quotes are letters)."""
    at = [0]

    def numbered() -> Iterator[str]:
        for number, line in lines:
            at[0] = number
            yield line

    csv.field_size_limit(LONGEST_LINE)
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(numbered(), delimiter=delimiter, quoting=quoting)
    try:
        first = next(reader, None)
        if first is None:
            return
        numbers = [name for name in (*text, *([label] if label else ())) if name.isdecimal()]
        if numbers and len(numbers) == len(text) + (label is not None):
            texts, target = [int(name) - 1 for name in text], int(label) - 1 if label else None
            if any(not 0 <= column < len(first) for column in (*texts, target or 0)):
                raise UsageError(f"{path} has {len(first)} columns, numbered from 1")
            rows: Iterable[list[str]] = _chain(first, reader)
        else:
            texts, target = _columns(path, first, text, label)
            rows = reader
        width = max(*texts, target if target is not None else 0)
        for row in rows:
            if not row:
                continue
            if len(row) <= width:
                raise UserError(f"line {at[0]} of {path} has {len(row)} columns; the first has {len(first)}")
            parts = [row[column].strip() for column in texts]
            found = None if target is None else row[target].strip()
            yield at[0], (parts[0], parts[1]) if len(parts) == 2 else parts[0], found or None
    except csv.Error as error:
        raise UserError(f"line {at[0]} of {path} is no row of a table: {error}") from None


def _chain(first: list[str], rest: Iterator[list[str]]) -> Iterator[list[str]]:
    yield first
    yield from rest


def _columns(path: Path, names: Sequence[str], text: Sequence[str], label: str | None) -> tuple[list[int], int | None]:
    """Places of the columns of the texts and of the label (None: there is none), by name."""
    lower = [name.strip().casefold() for name in names]

    def place(name: str) -> int:
        if name.casefold() not in lower:
            raise UsageError(f"{path} has no column {name!r}; it has {', '.join(map(repr, names))[:300]}")
        return lower.index(name.casefold())

    if len(text) > 2:
        raise UsageError("a row has one text or a pair; name one or two columns")
    target = place(label) if label else next((lower.index(name) for name in LABELS if name in lower), None)
    if text:
        return [place(name) for name in text], target
    for first, second in PAIRS:
        if first in lower and second in lower:
            return [lower.index(first), lower.index(second)], target
    found = next((lower.index(name) for name in TEXTS if name in lower and lower.index(name) != target), None)
    if found is None:
        raise UsageError(
            f"{path}: none of its columns is called {', '.join(TEXTS[:4])}, ...; it has "
            f"{', '.join(map(repr, names))[:300]}; name one with --text (without a header, its number)"
        )
    return [found], target


def _from_json(
    path: Path, lines: Iterator[tuple[int, str]], text: Sequence[str], label: str | None
) -> Iterator[tuple[int, Text, str | list[str] | None]]:
    names: tuple[list[str], str | None] | None = None
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"line {number} of {path} is not a JSON object")
        if names is None:
            keys = list(row)
            texts, target = _columns(path, keys, text, label)
            names = [keys[i] for i in texts], None if target is None else keys[target]
        parts = [row.get(name) for name in names[0]]
        if not all(isinstance(part, str) for part in parts):
            raise UserError(f"line {number} of {path} has no text under {' and '.join(map(repr, names[0]))}")
        found = None if names[1] is None else _json_label(row.get(names[1]))
        stripped = [str(part).strip() for part in parts]
        yield number, (stripped[0], stripped[1]) if len(stripped) == 2 else stripped[0], found


def _json_label(value: object) -> str | list[str] | None:
    if isinstance(value, list):
        return [str(each) for each in value]
    if value is None or isinstance(value, str):
        return value or None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _from_lines(
    path: Path, lines: Iterator[tuple[int, str]], text: Sequence[str], label: str | None
) -> Iterator[tuple[int, str, str]]:
    """`label text`, split at the first space or tab."""
    if text or label:
        raise UsageError(f"{path} has lines of a label and a text, no columns; name it .csv, .tsv or .jsonl")
    for number, line in lines:
        if not line.strip():
            continue
        parts = line.strip().split(None, 1)
        if len(parts) < 2:
            raise UserError(f"line {number} of {path} is not a label, a space and a text")
        yield number, parts[1], parts[0]


def _checked_text(path: Path, number: int, text: Text) -> Text:
    for part in (text,) if isinstance(text, str) else text:
        if not part:
            raise UserError(f"line {number} of {path} has an empty text; leave the row out")
    return text


def _detected_kind(values: Sequence[str | list[str]]) -> Kind:
    if any(isinstance(value, list) or "|" in value for value in values):
        return "multi"
    try:
        numbers = {float(str(value)) for value in values}
    except ValueError:
        return "single"
    whole = all(math.isfinite(number) and number.is_integer() for number in numbers)
    return "single" if whole and len(numbers) <= _REGRESSION else "regression"


def _names(value: str | list[str]) -> list[str]:
    if isinstance(value, list):
        return value
    return [part.strip() for part in value.split("|") if part.strip()]


def _number(source: str, row: int, value: str | list[str]) -> float:
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{source}: row {row} has {value!r}, which is no number; a regression needs one in each row")
    return number


def _in_order(names: set[str]) -> list[str]:
    """By value if all are whole numbers, else by name."""
    if all(name.lstrip("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def label_counts(rows: Rows) -> Counter[str]:
    """How many rows have each label."""
    return Counter(name for label in rows.labels if label is not None for name in _names(label))

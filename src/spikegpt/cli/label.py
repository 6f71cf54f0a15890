"""Answers of a classifier: read text by text, or token by token, and printed for people or programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text as Styled

from ..errors import UsageError, UserError
from ..label_eval import weights_read
from ..label_report import FEWEST
from ..model.classifier import Classifier, Evidence, chances_of
from ..profiling.energy import picojoules
from ..task import Text
from .show import print_json

_BAR = 40


def inputs(given: Sequence[str], *, lines: bool, pairs: bool) -> Iterator[Text]:
    """The texts of arguments, of files that they name, or of standard input (`-`); with `lines`, of each line."""
    whole: list[str] = []
    for each in given:
        if lines and (each == "-" or os.path.isfile(each)):
            yield from _lines_of(each, pairs)
        else:
            whole.append(_content(each))
    if pairs:
        if len(whole) % 2:
            raise UsageError("this classifier reads pairs: give two texts, or --lines with a tab between them")
        yield from zip(whole[::2], whole[1::2], strict=True)
    else:
        yield from whole


def _lines_of(name: str, pairs: bool) -> Iterator[Text]:
    stream = sys.stdin.buffer if name == "-" else open(name, "rb")  # noqa: SIM115 (closed below)
    try:
        for number, line in enumerate(stream, 1):
            text = line.decode("utf-8", "replace").strip()
            if not text:
                continue
            if not pairs:
                yield text
                continue
            first, tab, second = text.partition("\t")
            if not tab:
                raise UserError(f"line {number} of {name} has no tab between two texts")
            yield first.strip(), second.strip()
    finally:
        if name != "-":
            stream.close()


def _content(name: str) -> str:
    if name == "-":
        return sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    if len(name) < 1024 and "\n" not in name and os.path.isfile(name):
        return Path(name).read_bytes().decode("utf-8", "replace").strip()
    return name


class Answers:
    """Reads a text, and tells label, probability and cost."""

    def __init__(self, classifier: Classifier, *, stop_at: float | None, watch: bool, why: bool, as_json: bool) -> None:
        if stop_at is not None and not (0 < stop_at <= 1 and classifier.task.kind == "single"):
            raise UsageError("--stop-at is a probability in (0, 1], for classifiers that give one label")
        self._classifier, self._stop_at, self._watch, self._why = classifier, stop_at, watch, why
        self._as_json = as_json
        self._console = Console(highlight=False, soft_wrap=True)

    def tell(self, text: Text) -> None:
        """Read one text and print its answer."""
        (row,) = self._classifier.encode([text])
        model = self._classifier.model
        with model.meter() as meter:
            if self._watch or self._stop_at is not None:
                chances, read = self._step_by_step(row)
            else:
                chances, read = chances_of(self._classifier.logits([row])[0], len(row), self._classifier.task), len(row)
        weights = weights_read(model.config, meter.activity, read)
        answer = self._answer(chances) | {
            "tokens": read, "tokens_not_read": len(row) - read, "weights_read": round(weights),
            "picojoules": round(read * picojoules(model.config, weights / read)),
        }  # fmt: skip
        reasons = self._classifier.why(text) if self._why else []
        if self._as_json:
            k = int(chances.argmax())
            said = {"why": [[each.word, round(_said(each, k), 4)] for each in reasons]} if self._why else {}
            print_json(answer | said)
            sys.stdout.flush()
        else:
            self._print(answer, chances, reasons)

    def _answer(self, chances: np.ndarray) -> dict[str, Any]:
        task = self._classifier.task
        if task.kind == "regression":
            return {"value": float(chances[0])}
        names = self._classifier.names(chances)
        every = {name: round(float(p), 6) for name, p in zip(task.labels, chances, strict=True)}
        if task.kind == "multi":
            return {"labels": names, "probabilities": every}
        return {"label": names[0], "probability": round(float(chances.max()), 6), "probabilities": every}

    def _step_by_step(self, row: np.ndarray) -> tuple[np.ndarray, int]:
        """Probabilities, and how many tokens were read."""
        stream, chances = self._classifier.stream(), np.empty(0)
        live = Live(console=self._console, transient=True, auto_refresh=False)
        shown = self._watch and not self._as_json
        spelt, before = b"", ""
        with live:
            for number, token in enumerate(row, 1):
                chances = stream.step(int(token))
                spelt += self._classifier.tokenizer.token_bytes(int(token))
                if shown and self._console.is_terminal:
                    live.update(self._bars(spelt.decode("utf-8", "replace"), chances), refresh=True)
                elif shown and (now := ", ".join(self._classifier.names(chances))) != before:
                    self._console.print(f"{number} {now} {chances.max():.1%}", markup=False)
                    before = now
                if self._stop_at is not None and number >= FEWEST and stream.settled() >= self._stop_at:
                    return chances, number
        return chances, len(row)

    def _bars(self, text: str, chances: np.ndarray) -> Group:
        labels = self._classifier.task.labels
        width = max(map(len, labels))
        top = np.argsort(-chances)[:8]
        scale = 1.0 if self._classifier.task.kind != "regression" else max(1.0, abs(float(chances[0])))
        rows = [
            Styled(
                f"{labels[k]:>{width}} {'█' * round(_BAR * abs(float(chances[k])) / scale):<{_BAR}} {chances[k]:.1%}"
            )
            for k in sorted(top)
        ]
        return Group(Styled(text[-400:], style="dim"), *rows)

    def _print(self, answer: dict[str, Any], chances: np.ndarray, reasons: list[Evidence]) -> None:
        if "value" in answer:
            given = f"{answer['value']:.4g}"
        elif "labels" in answer:
            given = ", ".join(f"{name} {answer['probabilities'][name]:.1%}" for name in answer["labels"]) or "no label"
        else:
            given = f"{answer['label']} {answer['probability']:.1%}"
        skipped = f" of {answer['tokens'] + answer['tokens_not_read']}" if answer["tokens_not_read"] else ""
        cost = (
            f"{answer['tokens']}{skipped} tokens, {answer['weights_read'] / 1e6:.2f}M weights read, "
            f"{answer['picojoules'] / 1e6:.1f} uJ (45nm-int8, SRAM)"
        )
        self._console.print(Styled(given, style="bold").append(f"  {cost}", style="not bold dim"))
        if reasons:
            self._console.print(_coloured(reasons, int(chances.argmax())))
        sys.stdout.flush()


def _coloured(reasons: list[Evidence], label: int) -> Styled:
    """The words with what each said for the label: green for it, red against it, and the number."""
    line = Styled()
    for each in reasons:
        said = _said(each, label)
        line.append(f"{each.word}", style="green" if said > 0 else "red").append(f" {said:+.2f}  ", style="dim")
    return line


def _said(evidence: Evidence, label: int) -> float:
    """A word's logits for a label over the mean of the other labels'; of a single row, its logit."""
    others = np.delete(evidence.logits, label)
    return float(evidence.logits[label] - (others.mean() if len(others) else 0.0))

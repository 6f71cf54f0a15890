"""Fitting the look-up lane: a regularised linear model of n-grams, by L-BFGS over all rows at once.

N rows, K labels, F n-grams of the training rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.labelled import Rows, targets_of
from ..label_report import fit_temperature, loss_of
from ..model.classifier import Classifier
from ..model.lookup import ngrams
from ..model.spikegpt import SpikeGPT
from ..task import MOST_NGRAM_ROWS, TaskConfig

STRENGTHS = (20.0, 200.0)
"""Of the fit against its penalty, which is |v|^2 / (2 * strength * N) on a text's loss; held-out rows choose one."""
ITERATIONS = 60
SHARES = tuple(step / 20 for step in range(20))
"""Parts of the say that the lane may have; the network has the rest."""
_MOST = 1 << 20
_MOST_NUMBERS = 1 << 23
_WORTH = 1e-3
"""Fraction of the held-out loss that a lane must save to be kept."""
_ALONE = 0.5
"""The lane's share where no rows are held out to choose it."""


def with_lookup(task: TaskConfig, ids: Sequence[np.ndarray], longest: int) -> TaskConfig:
    """The task with a lane of n-grams up to `longest` tokens, its table twice as large as the n-grams that `ids` have."""
    if not longest:
        return task
    room = min(_MOST, MOST_NGRAM_ROWS, _MOST_NUMBERS // len(task.labels))
    different = len(np.unique(np.concatenate([ngrams(row, longest, MOST_NGRAM_ROWS) for row in ids])))
    rows = 1 << min((2 * different).bit_length(), room.bit_length() - 1)
    return dataclasses.replace(task, ngrams=longest, ngram_rows=rows)


def add_lookup(
    model: SpikeGPT, ids: Sequence[np.ndarray], wanted: np.ndarray, held: Rows | None, weights: Tensor | None = None
) -> float:
    """Fit the lane of a trained network beside it, and weigh the two on held-out rows; the lane's share of the say.

    Share and strength have the least loss at their best temperature, and scale the head and the table; a lane of no use is
    left out.
    `wanted` [N, K] is what `soft_targets` gives; `weights` [K] are the labels' in the loss.
    """
    assert model.lookup is not None
    task = Classifier(model).task
    if held is None:
        table, share = fit_lookup(ids, wanted, task, STRENGTHS[:1], weights)[0], _ALONE
    else:
        table, share = _weighed(model, fit_lookup(ids, wanted, task, STRENGTHS, weights), held)
    if share == 0:
        model.lookup = None
        model.config = dataclasses.replace(model.config, task=dataclasses.replace(task, ngrams=0, ngram_rows=0))
        return share
    with torch.no_grad():
        model.head.weight *= 1 - share
        model.lookup.weight.copy_(table * share)
    return share


def soft_targets(targets: np.ndarray, taught: np.ndarray | None, task: TaskConfig, distill: float) -> np.ndarray:
    """float32 [N, K]: targets as `data.labelled.targets_of` gives them, mixed with what a teacher says [N, K]."""
    wanted = np.eye(len(task.labels), dtype=np.float32)[targets] if task.kind == "single" else targets
    return wanted if taught is None else ((1 - distill) * wanted + distill * taught).astype(np.float32)


def _weighed(model: SpikeGPT, tables: Sequence[Tensor], held: Rows) -> tuple[Tensor, float]:
    """The table and the share of the least held-out loss."""
    classifier = Classifier(model)
    task = classifier.task
    rows, wanted = classifier.encode(held.texts), targets_of(held, task)
    network = classifier.logits(rows)  # the lane is still empty

    def loss_at(lane: np.ndarray, share: float) -> float:
        both = (1 - share) * network + share * lane
        return loss_of(both, wanted, dataclasses.replace(task, temperature=fit_temperature(both, wanted, task)))

    tried: list[tuple[float, int, float]] = []
    for number, table in enumerate(tables):
        lane = np.stack([_answer(table.numpy(), row, task) for row in rows])
        tried += [(loss_at(lane, share), number, share) for share in SHARES]
    loss, number, share = min(tried)
    return tables[number], 0.0 if loss > (1 - _WORTH) * tried[0][0] else share


def _answer(table: np.ndarray, row: np.ndarray, task: TaskConfig) -> np.ndarray:
    """Logits [K] of one text by the lane alone."""
    return table[ngrams(row, task.ngrams, task.ngram_rows)].sum(0) / len(row)


def fit_lookup(
    ids: Sequence[np.ndarray], wanted: np.ndarray, task: TaskConfig, strengths: Sequence[float],
    weights: Tensor | None = None,
) -> list[Tensor]:  # fmt: skip
    """For each strength the table [rows, K] of the least penalised loss on tokenised texts, with `soft_targets` [N, K].

    A text's answer is the mean over its tokens of the rows that they read. Each n-gram's row is s * v, where s is how far
    the labels differ on it by Naive Bayes (as in NBSVM: Wang and Manning, ACL 2012) and v, which the penalty is on, is fitted.
    """
    read = [ngrams(row, task.ngrams, task.ngram_rows) for row in ids]
    known, flat = np.unique(np.concatenate(read), return_inverse=True)
    counts = np.array([len(each) for each in read])
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)[:-1]]))
    share = torch.from_numpy(np.repeat(1 / np.array([len(row) for row in ids], np.float32), counts))
    places, text = torch.from_numpy(flat), np.repeat(np.arange(len(ids)), counts)
    scale = torch.from_numpy(_differences(flat, text, wanted, len(known)))
    aims = torch.from_numpy(wanted)
    table = torch.zeros(len(known), len(task.labels), requires_grad=True)
    found = []
    for strength in strengths:  # each fit begins where the last one ended
        optimizer = torch.optim.LBFGS([table], max_iter=ITERATIONS, history_size=8, line_search_fn="strong_wolfe")

        def loss(strength: float = strength) -> Tensor:
            table.grad = None
            logits = F.embedding_bag(places, table * scale, offsets, mode="sum", per_sample_weights=share)
            total = _loss(logits, aims, task, weights) + table.square().sum() / (2 * strength * len(ids))
            total.backward()
            return total

        optimizer.step(loss)  # pyright: ignore[reportArgumentType]
        whole = torch.zeros(task.ngram_rows, len(task.labels))
        whole[torch.from_numpy(known)] = (table * scale).detach()
        found.append(whole)
    return found


def _differences(flat: np.ndarray, row: np.ndarray, wanted: np.ndarray, features: int) -> np.ndarray:
    """float32 [F, 1] root mean square over the labels of each n-gram's log ratio: in texts with the label to in others."""
    seen = np.unique(flat.astype(np.int64) * len(wanted) + row)  # once a text
    feature, text = seen // len(wanted), seen % len(wanted)
    everywhere, total = np.bincount(feature, minlength=features).astype(np.float64), np.zeros(features)
    for label in wanted.T:
        inside = np.bincount(feature, np.abs(label[text]), features) + 1
        outside = np.maximum(everywhere - inside + 1, 0) + 1
        total += np.log(inside / inside.sum() / (outside / outside.sum())) ** 2
    return np.sqrt(total / wanted.shape[1]).astype(np.float32)[:, None]


def _loss(logits: Tensor, wanted: Tensor, task: TaskConfig, weights: Tensor | None) -> Tensor:
    if task.kind == "single":
        return F.cross_entropy(logits, wanted, weights)
    if task.kind == "multi":
        return F.binary_cross_entropy_with_logits(logits, wanted, weights)
    return F.mse_loss(logits, wanted)

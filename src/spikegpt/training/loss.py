"""The training losses. B batch, T tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops


def loss_fn(logits: Tensor, targets: Tensor, penalty: float = 1e-4) -> Tensor:
    """Mean cross entropy in nats of logits [B, T, V] at targets [B, T], in float32.

    Its gradient has one term that its value has not: each position's largest logit m gets m * `penalty` / (B*T) more,
    which keeps logits from drifting upwards together.
    """
    return ops.cross_entropy(logits, targets, penalty)


def distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence, in nats, of logits [B, T, V] from a teacher's [B, T, V], which gets no gradient."""
    return ops.divergence(logits, teacher)


def mixture(logits: Sequence[Tensor]) -> Tensor:
    """Logits [B, T, V] of the mean of the probabilities that several models' logits [B, T, V] stand for."""
    first, *others = logits
    if not others:
        return first
    together = F.log_softmax(first.float(), -1)
    for other in others:
        together = torch.logaddexp(together, F.log_softmax(other.float(), -1))
    return together


def mismatch(residuals: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """Mean squared distance of residuals [B, T, C] from a teacher's, layer by layer in variances of the teacher's; averaged."""
    distances = [
        (ours.float() - x.float()).square().mean() / x.float().var()
        for ours, x in zip(residuals, teachers, strict=True)
    ]
    return torch.stack(distances).mean()

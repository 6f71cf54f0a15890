"""What training minimises. B batch, T tokens, V vocabulary."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from . import ops


def loss_fn(logits: Tensor, targets: Tensor, penalty: float = 1e-4) -> Tensor:
    """Mean cross entropy in nats of logits [B, T, V] at targets [B, T], in float32.

    Its gradient has one term that its value has not: each position's largest logit m gets m * `penalty` / (B*T) more,
    which keeps logits from drifting upwards together.
    """
    return ops.cross_entropy(logits, targets, penalty)


def distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence, in nats, of logits [B, T, V] from a teacher's [B, T, V]."""
    ours, theirs = (F.log_softmax(each.float().flatten(0, 1), -1) for each in (logits, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)

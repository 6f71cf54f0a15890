"""What training minimises. B batch, T tokens, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def loss_fn(logits: Tensor, targets: Tensor, penalty: float = 1e-4) -> Tensor:
    """Mean cross entropy in nats of logits [B, T, V] at targets [B, T], in float32.

    Its gradient has one term that its value has not: each position's largest logit m gets m * `penalty` / (B*T) more,
    which keeps logits from drifting upwards together.
    """
    return _CrossEntropy.apply(logits.float(), targets, penalty)


def distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence, in nats, of logits [B, T, V] from a teacher's [B, T, V]."""
    ours, theirs = (F.log_softmax(each.float().flatten(0, 1), -1) for each in (logits, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class _CrossEntropy(torch.autograd.Function):
    """By hand, for memory: the gradient is made in one [B, T, V] tensor, and no log-probabilities are kept."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, penalty: float) -> Tensor:
        largest, where = logits.max(-1)
        log_total = (logits - largest.unsqueeze(-1)).exp_().sum(-1).log_().add_(largest)
        ctx.save_for_backward(logits, targets, log_total, largest, where)
        ctx.penalty = penalty
        return (log_total - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, log_total, largest, where = ctx.saved_tensors
        scale = grads[0] / targets.numel()
        grad = (logits - log_total.unsqueeze(-1)).exp_().mul_(scale)
        grad.scatter_add_(-1, targets.unsqueeze(-1), -scale.expand(*targets.shape, 1))
        grad.scatter_add_(-1, where.unsqueeze(-1), (largest * ctx.penalty * scale).unsqueeze(-1))
        return grad, None, None

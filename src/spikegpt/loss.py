"""What training minimises. B batch, T tokens, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import ops

_ELEMENTS = {"cpu": 2**18}
"""Log-probabilities held at a time: what a core's cache has room for, or elsewhere 2**26."""


def loss_fn(logits: Tensor, targets: Tensor, penalty: float = 1e-4) -> Tensor:
    """Mean cross entropy in nats of logits [B, T, V] at targets [B, T], in float32.

    Its gradient has one term that its value has not: each position's largest logit m gets m * `penalty` / (B*T) more,
    which keeps logits from drifting upwards together.
    """
    return ops.cross_entropy(logits, targets, penalty)


def distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence, in nats, of logits [B, T, V] from a teacher's [B, T, V], which learns nothing."""
    return _Distillation.apply(logits.flatten(0, -2), teacher.detach().flatten(0, -2))


class _Distillation(torch.autograd.Function):
    """Row by row, for memory: of all that is computed only the gradient, as large as the logits, is kept."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher: Tensor) -> Tensor:
        rows, classes = logits.shape
        grad = torch.empty_like(logits)
        total = torch.zeros((), device=logits.device)
        at_once = max(1, _ELEMENTS.get(logits.device.type, 2**26) // classes)
        for ours, theirs, out in zip(*(each.split(at_once) for each in (logits, teacher, grad)), strict=True):
            log_q, log_p = F.log_softmax(ours.float(), -1), F.log_softmax(theirs.float(), -1)
            p = log_p.exp()
            total += torch.dot(p.flatten(), log_p.sub_(log_q).flatten())
            out.copy_(log_q.exp_().sub_(p).div_(rows))
        ctx.save_for_backward(grad)
        return total / rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.saved_tensors[0] * grads[0], None

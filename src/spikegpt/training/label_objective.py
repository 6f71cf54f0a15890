"""Objective of a classifier: the loss of its labels, with a teacher's and the next token's beside it.

B rows, T tokens, K labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.classifier import mean_logits
from ..model.spikegpt import SpikeGPT
from ..task import FinetuneConfig, TaskConfig
from .objective import Objective


class LabelLoss(Objective):
    """Cross entropy (single), binary cross entropy (multi) or squared error (regression) of the mean logits."""

    def __init__(
        self, model: SpikeGPT, task: TaskConfig, config: FinetuneConfig, *,
        weights: Tensor | None = None, language_model: SpikeGPT | None = None,
    ) -> None:  # fmt: skip
        """`weights` [K] of the labels; `language_model`: whose head predicts the next token, and learns nothing."""
        super().__init__(model)
        self.task, self.config = task, config
        self.register_buffer("weights", weights, persistent=False)
        self._language = [] if language_model is None else [language_model]  # a list hides it from named_parameters
        self.blank = 0 if model.tokenizer is None or model.tokenizer.eos_id is None else model.tokenizer.eos_id

    def forward(
        self, ids: Tensor, lengths: Tensor, targets: Tensor, taught: Tensor | None = None, begins: bool = True
    ) -> tuple[Tensor, Tensor]:
        """What to minimise, and the labels' own loss in nats: ids [B, T], lengths [B], targets as `targets_of` gives them.

        `taught` [B, K]: a teacher's probabilities (of a regression, its standardised answers).
        """
        read = self._with_blanks(ids)
        hidden, state = self.model.features(read)
        # One mask a text: what is dropped is a channel of the mean, as if the head read the mean itself.
        dropped = F.dropout(hidden.new_ones(len(ids), 1, hidden.shape[-1]), self.config.dropout, self.training)
        logits = mean_logits(self.model.read_out(hidden * dropped, state)[0], lengths)
        loss = self._loss(logits, targets)
        objective = loss
        if taught is not None:
            objective = (1 - self.config.distill) * loss + self.config.distill * self._distance(logits, taught)
        if self._language:
            objective = objective + self.config.lm * self._next_token(hidden, ids, lengths)
        return objective, loss.detach()

    def _with_blanks(self, ids: Tensor) -> Tensor:
        if not self.training or not self.config.word_dropout:
            return ids
        blank = torch.rand(ids.shape, device=ids.device) < self.config.word_dropout
        return ids.masked_fill(blank, self.blank)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights: Tensor | None = self.weights  # pyright: ignore[reportAssignmentType]
        if self.task.kind == "single":
            return F.cross_entropy(logits, targets, weights, label_smoothing=self.config.smoothing)
        if self.task.kind == "multi":
            return F.binary_cross_entropy_with_logits(logits, targets, weights)
        return F.mse_loss(logits, targets)

    def _distance(self, logits: Tensor, taught: Tensor) -> Tensor:
        if self.task.kind == "single":
            return -(taught * F.log_softmax(logits, -1)).sum(-1).mean()
        if self.task.kind == "multi":
            return F.binary_cross_entropy_with_logits(logits, taught)
        return F.mse_loss(logits, taught)

    def _next_token(self, hidden: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """Mean cross entropy in nats of each next token, by the language model's own head on what the classifier's reads."""
        real = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
        if not bool(real.any()):
            return hidden.new_zeros(())
        language = self._language[0]
        logits, _ = language.read_out(hidden[:, :-1], language.init_state(len(ids)))
        return F.cross_entropy(logits[real].float(), ids[:, 1:][real])

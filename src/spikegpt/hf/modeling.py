"""`SpikeGPT` inside the model classes of `transformers`: names, caches, losses and files; no mathematics of its own.

B batch, T columns of ids, C channels, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from .. import hub
from ..errors import UsageError, UserError
from ..model.neurons import EventNeuron
from ..model.ragged import Reader, read_masked
from ..model.spikegpt import SpikeGPT
from .cache import StateCache
from .configuration import SpikeGPTConfig

_PREFIX = "spikegpt."
_HALF = (torch.float16, torch.bfloat16)


class SpikeGPTPreTrainedModel(PreTrainedModel):
    """Holds the `SpikeGPT` and speaks the published names: files have `emb.weight`, modules `spikegpt.emb.weight`."""

    config: SpikeGPTConfig
    config_class = SpikeGPTConfig
    base_model_prefix = "spikegpt"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _is_stateful = True
    # In half precision only the matrices and the embedding are: sums over time and thresholds need all their digits.
    _keep_in_fp32_modules_strict = ["ln", "time_", "threshold", "unit", "leak_logit", "score", "lookup"]  # noqa: RUF012

    def __init__(self, config: SpikeGPTConfig) -> None:
        super().__init__(config)
        self.spikegpt = SpikeGPT(config.model_config())
        if not self.spikegpt.emb.weight.is_meta:
            for module in self.spikegpt.modules():
                module._is_hf_initialized = True  # pyright: ignore[reportArgumentType]: a mark of `transformers`
        self.register_load_state_dict_pre_hook(_to_module_names)

    def read(
        self, reader: Reader, ids: Tensor, mask: Tensor | None, cache: StateCache | None, keep_state: bool
    ) -> tuple[Tensor, StateCache | None]:
        """Run `reader` over ids [B, T] from the cache's state, leaving out padding: what mask [B, >= T] hides, and the id
        after the last of the vocabulary, which `generate` appends to rows that have ended.
        """
        cache = StateCache() if cache is None else cache
        if not isinstance(cache, StateCache):
            raise UsageError(f"cache must be the StateCache of an earlier call, not {type(cache).__name__}")
        if cache.state is not None and cache.batch_size != len(ids):
            raise UsageError(f"cache holds {cache.batch_size} rows, input_ids has {len(ids)}")
        state = self.spikegpt.init_state(len(ids)) if cache.state is None else cache.state
        columns = ids.shape[1]
        real = ids != self.config.vocab_size
        mask = real if mask is None else mask[:, -columns:].to(ids.device).bool() & real
        with self._precision():
            output, after = read_masked(reader, ids, mask, state, keep_state=keep_state)
        if not keep_state or after is None:
            return output, None
        cache.put(after, columns)
        return output, cache

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """Where the matrices are in half precision, their products are too; nothing else is."""
        weight = self.spikegpt.emb.weight
        return torch.autocast(weight.device.type, weight.dtype) if weight.dtype in _HALF else contextlib.nullcontext()

    def _keeps_state(self, use_cache: bool | None, labels: Tensor | None = None) -> bool:
        if use_cache is not None:
            return use_cache
        return self.config.use_cache and labels is None and not self.training

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens."""
        return self.spikegpt.emb

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another vocabulary, as `resize_token_embeddings` makes it."""
        assert isinstance(value, nn.Embedding)
        self.spikegpt.emb = value
        self.spikegpt.config = dataclasses.replace(self.spikegpt.config, vocab_size=value.num_embeddings)

    def _init_weights(self, module: nn.Module) -> None:
        """Fill what a file did not: a new classifier, a resized vocabulary, counters. To lack more means damage."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            super()._init_weights(module)
        elif missing := [name for name, tensor in _saved(module) if not getattr(tensor, "_is_hf_initialized", False)]:
            where = next(name for name, other in self.named_modules() if other is module).removeprefix(_PREFIX)
            raise UserError(f"the weights lack {where}.{missing[0]}: the file is damaged or of another model")
        if isinstance(module, EventNeuron):
            module.events_seen.zero_()

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """As everywhere in `transformers`, but under the published names, with the loader and a model card."""
        state_dict = self.state_dict() if state_dict is None else state_dict
        published = {name.removeprefix(_PREFIX): tensor for name, tensor in state_dict.items()}
        self.config.auto_map = hub.AUTO_MAP
        repository = {name: kwargs.pop(name) for name in ("repo_id", "commit_message", "create_pr") if name in kwargs}
        super().save_pretrained(save_directory, is_main_process, published, **kwargs)
        if is_main_process:
            hub.add_code(save_directory, self.config.to_dict())
        if push_to_hub:
            self.push_to_hub(**{"repo_id": Path(save_directory).name, **repository})

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: the code saved beside a model is the loader in `hub`, not this package's source."""


class SpikeGPTModel(SpikeGPTPreTrainedModel):
    """Gives the last hidden states, what the head reads."""

    def __init__(self, config: SpikeGPTConfig) -> None:
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: StateCache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """input_ids [B, T] to last_hidden_state [B, T, C]."""
        keep = self._keeps_state(use_cache)
        hidden, cache = self.read(self.spikegpt.features, input_ids, attention_mask, cache, keep)
        return BaseModelOutputWithPast(last_hidden_state=hidden, cache=cache)


class SpikeGPTForCausalLM(SpikeGPTPreTrainedModel, GenerationMixin):
    """The language model. Padding, on either side, does not change what the other tokens give."""

    def __init__(self, config: SpikeGPTConfig) -> None:
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: StateCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids [B, T] to logits [B, T, V]; labels [B, T] (the ids themselves; -100 is left out) add the loss."""
        core = self.spikegpt
        keep = self._keeps_state(use_cache, labels)
        # Where the head's neuron remembers, it must see every token; else the head may read the wanted columns alone.
        reader = core.forward if core.head_remembers else core.features
        output, cache = self.read(reader, input_ids, attention_mask, cache, keep)
        wanted = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = output[:, wanted]
        if not core.head_remembers:
            with self._precision():
                logits, _ = core.read_out(logits, core.init_state(len(input_ids)))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.spikegpt.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Another vocabulary: its weights, in the model's own kind of matrix."""
        assert isinstance(new_embeddings, nn.Linear)
        self.spikegpt.head.weight = new_embeddings.weight
        self.spikegpt.head.out_features = new_embeddings.out_features
        if self.spikegpt.head_neuron is not None:
            self.spikegpt.head_neuron.fan_out = new_embeddings.out_features

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """`generate` must not make a cache of keys and values; `forward` makes a StateCache."""
        return False


class SpikeGPTForSequenceClassification(SpikeGPTPreTrainedModel):
    """Classifies a text by the mean over its real tokens.

    The directory of a classifier that `spikegpt finetune` made has a head with a row a label, whose logits are averaged
    and scaled as they were fitted, by the text's length and a temperature. Of any other directory the last hidden states
    are averaged, and a new `score` reads them.
    """

    def __init__(self, config: SpikeGPTConfig) -> None:
        super().__init__(config)
        self.score = None
        if self.spikegpt.config.task is None:
            self.spikegpt.head.requires_grad_(False)  # kept, so that the language model can be had back, but not read
            self.score = nn.Linear(config.n_embd, config.num_labels or 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """input_ids [B, T] to logits [B, labels]; labels [B] (or [B, labels]) add a loss."""
        core = self.spikegpt
        output, _ = self.read(core.features if self.score else core.forward, input_ids, attention_mask, None, False)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weight = real.unsqueeze(-1).to(output)
        mean = (output * weight).sum(1) / weight.sum(1).clamp(min=1)
        task = core.config.task
        if self.score is not None or task is None:
            logits = mean if self.score is None else self.score(mean)
        else:
            longer = weight.sum(1).clamp(min=1) ** task.length_power
            logits = task.offset + task.scale * mean if task.kind == "regression" else mean * longer / task.temperature
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _to_module_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let `load_state_dict` take published names, as in the files: `Trainer` resumes that way."""
    own = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    for name in [name for name in state_dict if name.startswith(prefix)]:
        inside = name.removeprefix(prefix)
        if inside not in own and _PREFIX + inside in own:
            state_dict[prefix + _PREFIX + inside] = state_dict.pop(name)


def _saved(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The module's own parameters and buffers that files have."""
    buffers = module.named_buffers(recurse=False)
    kept = [(name, buffer) for name, buffer in buffers if name not in module._non_persistent_buffers_set]
    return [*module.named_parameters(recurse=False), *kept]

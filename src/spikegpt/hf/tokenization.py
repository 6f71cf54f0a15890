"""The project's `tokenizer.json`, of any kind, as a tokenizer of `transformers`."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from ..errors import UserError
from ..tokenizer import PAD_TOKENS, PADDING
from ..tokenizer.special import end_of_text


class _SpecialTokens(PreTrainedTokenizerFast):
    """Names the end of text and the padding, as `tokenizer.special` defines them.

    A separate class, for `transformers` rebuilds a tokenizer from its vocabulary where the class has its own `__init__`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"clean_up_tokenization_spaces": False, **kwargs})
        if self._special_tokens_map.get("eos_token") is None:
            self.eos_token = end_of_text(self.backend_tokenizer)
        if self._special_tokens_map.get("pad_token") is None:
            self._name_padding()

    def _name_padding(self) -> None:
        """A token that texts do not have: the file's own padding, else one after the last."""
        vocab = self.get_vocab()
        named = next((token for token in PAD_TOKENS if token in vocab), PADDING)
        expected = vocab.get(named, max(vocab.values()) + 1)
        self.add_special_tokens({"pad_token": named})  # also marks it, so that it vanishes from decoded text
        if self.pad_token_id != expected:
            raise UserError(
                f"the tokenizer's ids have gaps, so that transformers cannot add {PADDING!r} after the last; name an "
                "unused id so in its tokenizer.json"
            )


class SpikeGPTTokenizer(_SpecialTokens):
    """The same ids as `spikegpt.load_tokenizer` gives; pads on the left, as generation needs."""

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoTokenizer") -> None:
        """Nothing: the code saved beside a model is the loader in `hub`, not this package's source."""

"""The project's `tokenizer.json`, of any kind, as a tokenizer of `transformers`."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from ..tokenizer import END_TOKENS


class _SpecialTokens(PreTrainedTokenizerFast):
    """Names the end-of-text token, and lets vocabularies without a token to spare be padded.

    A separate class, for `transformers` rebuilds a tokenizer from its vocabulary where the class has its own `__init__`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pad = kwargs.pop("pad_token", None)
        super().__init__(*args, **{"clean_up_tokenization_spaces": False, **kwargs})
        vocab = self.get_vocab()
        if self._special_tokens_map.get("eos_token") is None:
            self.eos_token = next((token for token in END_TOKENS if token in vocab), None)
        # The model reads nothing that the mask hides, so any token can be padding: id 0 if there is no better one.
        # It is only named: registered as a special token it would vanish from decoded text.
        pad = str(pad or self._special_tokens_map.get("eos_token") or self.convert_ids_to_tokens(0))
        if pad in vocab:
            self.pad_token = pad
        else:
            self.add_special_tokens({"pad_token": pad})


class SpikeGPTTokenizer(_SpecialTokens):
    """The same ids as `spikegpt.load_tokenizer` gives; pads on the left, as generation needs."""

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoTokenizer") -> None:
        """Nothing: the code saved beside a model is the loader in `hub`, not this package's source."""

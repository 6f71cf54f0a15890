"""Special tokens: the one definition that corpora, training, evaluation, generation and transformers share.

- **End of text** ends a document. It is a token of the file that is called one of `END_TOKENS` and that no merge of
  ordinary text gives. It stands for no bytes of text, whether it was added where a file ends or stands literally in
  the text: what is measured in bytes does not count it. Generation ends at it, and a text without prompt begins after it.
- **Padding** fills batches of transformers. It is a token of the file called one of `PAD_TOKENS`, else one that is
  added after the last (`PADDING`, id `vocab_size`); never one that texts have. The model never reads it.
- **Token 0** has no meaning of its own.
"""

from __future__ import annotations

END_OF_TEXT = "<|endoftext|>"
END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
PADDING = "<|padding|>"
PAD_TOKENS = (PADDING, "<|pad|>", "<pad>", "[PAD]")

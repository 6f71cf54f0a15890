"""Special tokens: the one definition that corpora, training, evaluation, generation and transformers share.

- **End of text** ends a document. It is a token of the file that is called one of `END_TOKENS` and that no merge of
  ordinary text gives. It stands for no bytes of text, whether it was added where a file ends or stands literally in
  the text: what is measured in bytes does not count it. Generation ends at it, and a text without prompt begins after it.
- **Padding** fills batches of transformers. It is a token of the file called one of `PAD_TOKENS`, else one that is
  added after the last (`PADDING`, id `vocab_size`); never one that texts have. The model never reads it.
- **Token 0** has no meaning of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

END_OF_TEXT = "<|endoftext|>"
END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
PADDING = "<|padding|>"
PAD_TOKENS = (PADDING, "<|pad|>", "<pad>", "[PAD]")


def end_of_text(tokenizer: LibraryTokenizer) -> str | None:
    """The token of a tokenizer of the library that ends a text, if it has one."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    return next((token for token in END_TOKENS if token in vocab and _is_special(tokenizer, token)), None)


def _is_special(tokenizer: LibraryTokenizer, token: str) -> bool:
    """Whether ordinary text never gives this token: it is an added one, or merges do not make it."""
    added = {about.content for about in tokenizer.get_added_tokens_decoder().values()}
    return token in added or len(tokenizer.encode(token, add_special_tokens=False).ids) != 1

"""Text to token ids and back: bytes, characters or byte-level BPE behind one small interface.

Every kind is saved as `tokenizer.json` in the format of the Hugging Face `tokenizers` library, so that another
program reads the same file and gets the same ids.
"""

from .base import FILE_NAME, StreamDecoder, Tokenizer
from .kinds import BPETokenizer, ByteTokenizer, CharTokenizer, train_bpe
from .loading import load_reference_vocabulary, load_tokenizer
from .special import END_OF_TEXT, END_TOKENS, PAD_TOKENS, PADDING

__all__ = [
    "END_OF_TEXT", "END_TOKENS", "FILE_NAME", "PADDING", "PAD_TOKENS", "BPETokenizer", "ByteTokenizer", "CharTokenizer",
    "StreamDecoder", "Tokenizer", "load_reference_vocabulary", "load_tokenizer", "train_bpe",
]  # fmt: skip

"""Text to batches: files to documents, documents to token files, token files to batches."""

from .batches import Batches, Streams, Windows, sequential
from .corpus import documents, expand
from .token_file import TokenFile
from .tokens import Corpus, prepare, prepare_files

__all__ = [
    "Batches", "Corpus", "Streams", "TokenFile", "Windows", "documents", "expand", "prepare", "prepare_files", "sequential",
]  # fmt: skip

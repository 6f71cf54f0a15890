"""Text from a model: decoding, sampling, stopping."""

from .decode import complete, generate, generate_batch

__all__ = ["complete", "generate", "generate_batch"]

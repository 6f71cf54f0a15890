"""Text from a model: decoding, sampling, stopping."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .decode import complete as complete
    from .decode import generate as generate
    from .decode import generate_batch as generate_batch

__getattr__, __dir__, __all__ = lazy_exports(__name__, {"decode": ("complete", "generate", "generate_batch")})

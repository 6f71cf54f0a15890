"""A model as C files that need no library, allocation or float: `spikegpt export c`."""

from .write import export_c

__all__ = ["export_c"]

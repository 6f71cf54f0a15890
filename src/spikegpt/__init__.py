"""SpikeGPT: a generative language model made of spiking neurons.

>>> import spikegpt
>>> model = spikegpt.load()
>>> for piece in spikegpt.generate(model, "Once upon a time"):
...     print(piece, end="", flush=True)

Importing the package imports nothing else; a name is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import save_model as save_model
    from .config import EventConfig as EventConfig
    from .config import ModelConfig as ModelConfig
    from .config import TrainConfig as TrainConfig
    from .config import preset as preset
    from .errors import UsageError as UsageError
    from .errors import UserError as UserError
    from .evaluation import Evaluation as Evaluation
    from .evaluation import evaluate as evaluate
    from .generation import generate as generate
    from .generation import generate_batch as generate_batch
    from .loading import load as load
    from .model import SpikeGPT as SpikeGPT
    from .model import SpikeMeter as SpikeMeter
    from .model import State as State
    from .training.recipe import train_on as train_on

    __version__: str

_HOMES = {
    "checkpoint": ("save_model",),
    "config": ("EventConfig", "ModelConfig", "TrainConfig", "preset"),
    "errors": ("UsageError", "UserError"),
    "evaluation": ("Evaluation", "evaluate"),
    "generation": ("generate", "generate_batch"),
    "loading": ("load",),
    "model": ("SpikeGPT", "SpikeMeter", "State"),
    "training.recipe": ("train_on",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:
        return "0+not.installed"

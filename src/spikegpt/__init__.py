"""SpikeGPT: a generative language model made of spiking neurons.

>>> import spikegpt
>>> model = spikegpt.load()
>>> for piece in spikegpt.generate(model, "Once upon a time"):
...     print(piece, end="", flush=True)

Importing the package imports nothing else; a name is fetched when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .lazy import lazy_exports

if TYPE_CHECKING:
    from .checkpoint import save_model as save_model
    from .config import EventConfig as EventConfig
    from .config import ModelConfig as ModelConfig
    from .config import TrainConfig as TrainConfig
    from .config import preset as preset
    from .errors import UsageError as UsageError
    from .errors import UserError as UserError
    from .estimator import TextClassifier as TextClassifier
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

_get, __dir__, _names = lazy_exports(
    __name__,
    {
        "checkpoint": ("save_model",),
        "config": ("EventConfig", "ModelConfig", "TrainConfig", "preset"),
        "errors": ("UsageError", "UserError"),
        "estimator": ("TextClassifier",),
        "evaluation": ("Evaluation", "evaluate"),
        "generation": ("generate", "generate_batch"),
        "loading": ("load",),
        "model": ("SpikeGPT", "SpikeMeter", "State"),
        "training.recipe": ("train_on",),
    },
)
__all__ = ["__version__", *_names]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name != "__version__":
        return _get(name)
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:
        return "0+not.installed"

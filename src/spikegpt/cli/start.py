"""What commands do first: load a model, look at the machine."""

from __future__ import annotations

import platform
from typing import Any

import torch

from .. import __version__, ops
from ..errors import UserError
from ..loading import load


def load_model(
    name: str | None, device: str | None, backend: str, reference_generation: bool = False, engine: str = "float"
) -> Any:
    """The model of that name, as `loading.load` gives it, or as the published script generates with it."""
    model = load(name, device=device, backend=backend, engine=engine)
    if not reference_generation:
        return model
    from ..generation.published import reference_generation as as_published

    return as_published(model)


def describe(name: str | None) -> dict[str, Any]:
    """Facts about this installation and a model, as JSON values."""
    facts: dict[str, Any] = {
        "spikegpt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "operators": ops.available(),
    }
    try:
        model = load(name, engine="float")
    except UserError as error:
        if name is not None:
            raise
        return facts | {"model": f"none: {error}"}
    assert model.tokenizer is not None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return facts | {
        "model": name or "shipped",
        "parameters": parameters,
        "tokenizer": model.tokenizer.kind,
        "config": {key: value for key, value in model.config.to_dict().items() if value is not None},
    }

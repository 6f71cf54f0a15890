"""`fixed.json`: formats, tables and multipliers beside a packed model's weights, readable without this program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ..integers import IntegerModel
from .formats import VERSION, Formats
from .model import FixedModel, check_fixed

FIXED = "fixed.json"


def describe(model: FixedModel, weights: str) -> dict[str, Any]:
    """The file's content; `weights` is the SHA-256 of the packed arrays that it belongs to."""
    return {
        "version": VERSION,
        "weights": weights,
        "formats": model.formats.to_dict(),
        "constants": {name: array.tolist() for name, array in model.constants.items()},
    }


def write(path: Path, model: FixedModel, weights: str) -> None:
    """Write the file into a directory in the making, a constant a line."""
    content = describe(model, weights)
    constants = content.pop("constants")
    head = json.dumps(content, indent=2).removesuffix("\n}")
    lines = ",\n".join(
        f"    {json.dumps(name)}: {json.dumps(values, separators=(',', ':'))}" for name, values in constants.items()
    )
    path.write_text(f'{head},\n  "constants": {{\n{lines}\n  }}\n}}\n', encoding="utf-8")


def read(path: Path, packed: IntegerModel, weights: str) -> FixedModel:
    """The model of a packed directory with the constants of its `fixed.json`; a UserError says what is wrong with it."""
    check_fixed(packed.config)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["version"]
        if found != VERSION:
            raise UserError(f"{path} has version {found}, this spikegpt reads {VERSION}: pack the model again")
        if content["weights"] != weights:
            raise UserError(f"{path} is of other weights than those beside it: pack the model again")
        constants = {name: _integers(values) for name, values in content["constants"].items()}
        return FixedModel.with_constants(packed, Formats.from_dict(content["formats"]), constants)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): pack the model again") from None
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _integers(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind != "i" or np.abs(array).max(initial=0) >= 1 << 31:
        raise ValueError("a constant is no array of 32-bit integers")
    return array.astype(np.int32)

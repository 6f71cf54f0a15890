"""A model as ONNX: standard nodes, the state in and out. ONNX runs every weight; it cannot skip those of silent neurons."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError, UserError
from ..files import write_atomically
from ..model.spikegpt import SpikeGPT
from ..model.state import State

NEXT = "/next"
"""Behind the name of a tensor of the state: its value after the tokens."""


class _Step(nn.Module):
    """The model with its state as plain tensors."""

    def __init__(self, model: SpikeGPT, state: State) -> None:
        super().__init__()
        self.model, self.state, self.names = model, state, list(state.named())

    def forward(self, ids: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        logits, state = self.model(ids, self.state.replace(dict(zip(self.names, tensors, strict=True))))
        return (logits, *state.named().values())


def export_onnx(model: SpikeGPT, out: Path, *, tokens: int = 1) -> list[str]:
    """Write `logits, state = model(ids, state)` for ids [1, tokens] as one ONNX file; returns the names of the state's tensors.

    Inputs are `ids` and the state's tensors by name, outputs `logits` [1, tokens, V] and those names + "/next". Begin with
    `model.init_state()`. UsageError where `out` exists, UserError where the packages onnx and onnxscript are missing.
    """
    if out.exists():
        raise UsageError(f"{out} already exists; choose another file")
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"ONNX files need {package} ({error}); pip install 'spikegpt[onnx]'") from None
    for module in model.modules():
        if hasattr(module, "backend"):
            module.__dict__["backend"] = "reference"  # plain PyTorch, which the exporter reads
    state = model.init_state(1)
    step = _Step(model.eval(), state)
    # a fresh state shares its zeros, and shared inputs would be taken for one
    inputs = (torch.zeros(1, tokens, dtype=torch.int64), *(tensor.clone() for tensor in state.named().values()))
    names: dict[str, Any] = {
        "input_names": ["ids", *step.names], "output_names": ["logits", *(name + NEXT for name in step.names)],
    }  # fmt: skip
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(step, inputs, dynamo=True, **names)
    assert program is not None
    write_atomically(out, lambda staged: program.save(str(staged)))
    return step.names


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporter's own remarks are about its insides."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)

"""Scales of 4-bit weights as whole numbers of steps."""

import numpy as np
import pytest
import torch
from event_models import KINDS, text
from tiny import awake

from spikegpt.engine import EventModel, base
from spikegpt.engine.integers import IntegerModel
from spikegpt.engine.steps import on_steps, split
from spikegpt.errors import UserError

needs_engine = pytest.mark.skipif(base.MISSING is not None, reason=f"the engine is not built: {base.MISSING}")


@pytest.mark.parametrize("levels", [1, 15, 127])
@pytest.mark.parametrize("inputs", [640, 16384])
def test_scales_come_apart_into_steps_and_fit_32_bits(inputs: int, levels: int) -> None:
    scale = np.random.default_rng(0).uniform(0.001, 0.01, (inputs // 128, 50)).astype(np.float32)
    near = on_steps(scale, inputs, levels)
    unit, steps = split(near, inputs, levels)
    assert np.array_equal(unit * steps, near)
    assert steps.min() >= 1
    assert np.abs(near / scale - 1).max() < 0.1
    assert np.abs(near / scale - 1).mean() < 0.01
    assert (steps.astype(np.int64).sum(0) * 128 * 8 * levels).max() < 2**31


def test_groups_of_zeros_and_of_tiny_weights_have_a_step() -> None:
    scale = np.array([[0, 0, 1e-44], [0.5, 0, 1e-44]], np.float32)
    unit, steps = split(on_steps(scale, 256, 15), 256, 15)
    assert (unit > 0).all()
    assert (steps >= 1).all()
    assert unit[0, 0] * steps[1, 0] == 0.5


@torch.inference_mode()
def test_a_group_of_zeros_does_not_spoil_the_others() -> None:
    model = awake(KINDS["several tiles"])
    weight = model.get_parameter("blocks.0.ffn.value.weight")
    weight[:, :128] = 0
    again = IntegerModel.of(model, 4).dequantise().get_parameter("blocks.0.ffn.value.weight")
    assert not again[:, :128].any()
    assert (again - weight).norm() < 0.15 * weight.norm()


def test_scales_that_are_no_steps_are_refused() -> None:
    packed = IntegerModel.of(awake(KINDS["several tiles"]), 4)
    name = "blocks.0.ffn.value.scale"
    with pytest.raises(UserError, match=f"array {name} has scales that are not whole numbers of steps"):
        IntegerModel(packed.config, 4, packed.arrays | {name: packed.arrays[name] * np.float32(1.001)})


@needs_engine
@torch.inference_mode()
def test_largest_events_and_steps_stay_exact() -> None:
    """Every event and weight the largest, several groups: the sums are those of whole numbers."""
    packed = IntegerModel.of(awake(KINDS["several tiles"]), 4)
    for name, array in packed.arrays.items():
        if array.dtype == np.uint8:
            array[:] = 0xFF
        elif name.endswith((".threshold", ".unit")):
            array[:] = 1e-6
    ids = text(packed.config, 9)
    expected = EventModel(packed, isa="baseline")(ids)[0]
    assert expected.isfinite().all()
    assert torch.equal(EventModel(packed)(ids)[0], expected)

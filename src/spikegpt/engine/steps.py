"""Scales of 4-bit weights as small integers: each group of inputs has 1 to 255 times a power of 2 of the output.

Read whole for every token, float32 scales would cost more than half as many bytes as the weights of 10% of the inputs. With
integers the sums over groups stay exact, too: sum * steps is added in 32 bits.
"""

from __future__ import annotations

import math

import numpy as np

MOST = 255


def powers(scale: np.ndarray, inputs: int, levels: int) -> np.ndarray:
    """scale [groups, outputs] -> the unit [outputs] of each output's steps: as fine as 8 bits and 32-bit sums allow.

    Weights are at most 8 (a file may have -8) and events at most `levels`.
    """
    bits = min(8, math.floor(math.log2((2**31 - 1) / (8 * levels * inputs))))
    _, exponent = np.frexp(scale.max(0))
    smallest = math.frexp(np.finfo(np.float32).tiny)[1] - 1
    return np.ldexp(np.float32(1), np.maximum(exponent - bits, smallest))


def on_steps(scale: np.ndarray, inputs: int, levels: int) -> np.ndarray:
    """The nearest scales float32 [groups, outputs] that are whole numbers of steps, at least one."""
    unit = powers(scale, inputs, levels)
    most = np.maximum(np.floor(scale.max(0) / unit), 1)
    return (np.clip(np.round(scale / unit), 1, most) * unit).astype(np.float32)


def split(scale: np.ndarray, inputs: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """scale [groups, outputs] -> unit float32 [1, outputs], steps uint8 [groups, outputs]; ValueError if they are no steps."""
    unit = powers(scale, inputs, levels)
    steps = scale / unit
    if not ((steps == np.round(steps)) & (steps <= MOST)).all():
        raise ValueError("scales that are not whole numbers of steps")
    return unit[None], steps.astype(np.uint8)

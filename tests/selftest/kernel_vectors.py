"""Vectors of the operators: inputs of every kernel, and what the reference makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikegpt import ops

Arrays = dict[str, Tensor]
HALF = torch.bfloat16
SHAPES = [(2, 1, 67), (1, 65, 130), (2, 33, 3)]


def random(*shape: int, half: bool = False) -> Tensor:
    """Normal values; exactly those of bfloat16 if `half`, as float32."""
    x = torch.randn(shape)
    return x.to(HALF).float() if half else x


def numbers(**values: float) -> Arrays:
    """Settings, as arrays of one value."""
    return {name: torch.tensor([float(value)]) for name, value in values.items()}


def stored(arrays: Arrays, half: Sequence[str]) -> Arrays:
    """The arrays named in `half` as bfloat16, the others as they are."""
    return {name: x.to(HALF) if name in half else x for name, x in arrays.items()}


def differentiated(
    function: Callable[..., Any],
    inputs: Arrays,
    outputs: Sequence[str],
    cotangents: Sequence[Tensor],
    dtype: torch.dtype,
) -> Arrays:
    """Outputs by name, and `grad_<name>` of each input, computed by the reference in `dtype`."""
    leaves = {name: x.to(dtype).requires_grad_() for name, x in inputs.items()}
    made = function(**leaves)
    gradients = torch.autograd.grad(made, list(leaves.values()), [g.to(dtype) for g in cotangents])
    return dict(zip(outputs, made, strict=True)) | {
        f"grad_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)
    }


def wkv() -> Iterator[Arrays]:
    for batch, time, channels in SHAPES:
        for half, gated in ((False, False), (False, True), (True, True)):
            seen = random(batch, channels)
            inputs = {
                "decay": -torch.rand(channels) * 2 - 1e-3,
                "first": random(channels),
                "k": random(batch, time, channels, half=half),
                "v": random(batch, time, channels, half=half),
                "state": torch.stack([seen, torch.rand(batch, channels) + 0.5, seen], 1),
            }
            if gated:
                inputs["gate"] = random(batch, time, channels, half=half) * 2
            grads = [random(batch, time, channels, half=half), random(batch, 3, channels)]
            operator = ops.gated_wkv if gated else ops.wkv
            made = differentiated(
                lambda operator=operator, **x: operator(**x, backend="reference"),
                inputs,
                ["y", "state_out"],
                grads,
                torch.float64,
            )
            narrow = ["k", "v", "gate", "y", "grad_y", "grad_k", "grad_v", "grad_gate"] if half else []
            given = {"grad_y": grads[0], "grad_state_out": grads[1]}
            yield {"shape": torch.tensor([batch, time, channels])} | stored(inputs | made | given, narrow)


def lif() -> Iterator[Arrays]:
    for batch, time, channels in SHAPES:
        for half, added in ((False, False), (True, True)):
            inputs = {
                "x": random(batch, time, channels, half=half) * 1.5 + 0.5,
                "membrane": torch.rand(batch, channels),
            }
            inputs["x"] = inputs["x"].to(HALF).float() if half else inputs["x"]
            if added:
                inputs["residual"] = random(batch, time, channels)
            settings = {"tau": 3.3 if half else 2.0, "threshold": 1.1, "alpha": 2.5}
            grads = [random(batch, time, channels), random(batch, channels)]
            operator: Callable[..., Any] = ops.lif_add if added else ops.lif
            made = differentiated(
                lambda operator=operator, settings=settings, **x: operator(**x, **settings, backend="reference"),
                inputs, ["spikes", "membrane_out"], grads, torch.float32,
            )  # fmt: skip
            given = {"grad_spikes": grads[0], "grad_membrane_out": grads[1]}
            narrow = ["x", "grad_x"] if half else []
            yield (
                {"shape": torch.tensor([batch, time, channels])}
                | numbers(**settings)
                | stored(inputs | made | given, narrow)
            )


def event_settings() -> Iterator[dict[str, Any]]:
    yield {"levels": 15, "smallest": 1, "signed": True, "reset": "hard", "window": 0.0}
    yield {"levels": 15, "smallest": 3, "signed": True, "reset": "soft", "window": 0.3}
    yield {"levels": 1, "smallest": 1, "signed": False, "reset": "hard", "window": 0.5}
    yield {"levels": 4, "smallest": 1, "signed": False, "reset": "soft", "window": 0.0}


def as_numbers(settings: dict[str, Any]) -> Arrays:
    return numbers(**{name: x for name, x in settings.items() if name != "reset"}, hard=settings["reset"] == "hard")


def event() -> Iterator[Arrays]:
    for batch, time, channels in SHAPES:
        for number, settings in enumerate(event_settings()):
            half = number % 2 == 1
            fixed = {"threshold": torch.rand(channels) + 0.2, "unit": torch.rand(channels) * 0.2 + 0.1}
            inputs = {
                "x": random(batch, time, channels, half=half),
                "leak": torch.rand(channels) * 0.9,
                "membrane": random(batch, channels) * 0.3,
            }
            grads = [random(batch, time, channels, half=half), random(batch, channels)]
            made = differentiated(
                lambda settings=settings, fixed=fixed, **x: ops.event(**x, **fixed, **settings, backend="reference"),
                inputs, ["events", "membrane_out"], grads, torch.float32,
            )  # fmt: skip
            given = {"grad_events": grads[0], "grad_membrane_out": grads[1]}
            narrow = ["x", "events", "grad_events", "grad_x"] if half else []
            yield (
                {"shape": torch.tensor([batch, time, channels])}
                | as_numbers(settings)
                | fixed
                | stored(inputs | made | given, narrow)
            )


def point_event() -> Iterator[Arrays]:
    for batch, time, channels in [*SHAPES, (1, 3, 300)]:
        for number, settings in enumerate(event_settings()):
            half = number % 2 == 1
            fixed = {"threshold": torch.rand(channels) + 0.2, "unit": torch.rand(channels) * 0.2 + 0.1}
            inputs = {"x": random(batch, time, channels, half=half)}
            grads = [random(batch, time, channels, half=half)]
            made = differentiated(
                lambda settings=settings, fixed=fixed, **x: ops.event(**x, **fixed, **settings, backend="reference")[:1],
                inputs, ["events"], grads, torch.float32,
            )  # fmt: skip
            made["tally"] = ops.tally(made["events"], settings["levels"], backend="reference").float()
            narrow = ["x", "events", "grad_events", "grad_x"] if half else []
            yield (
                {"shape": torch.tensor([batch, time, channels])}
                | as_numbers(settings)
                | fixed
                | stored(inputs | made | {"grad_events": grads[0]}, narrow)
            )


def shift_mix() -> Iterator[Arrays]:
    for number, (batch, time, channels) in enumerate([*SHAPES, (1, 3, 300)]):
        count, half = number % 3 + 1, number % 2 == 1
        inputs = {
            "x": random(batch, time, channels),
            "last": random(batch, channels),
            "mixes": random(count, channels) * 0.6 + 0.4,
        }
        grads = [random(batch, time, channels, half=half) for _ in range(count)]
        names = [f"y{i}" for i in range(count)]
        made = differentiated(
            lambda x, last, mixes: ops.shift_mix(x, last, list(mixes), backend="reference"),
            inputs, names, grads, torch.float64,
        )  # fmt: skip
        given = {f"grad_{name}": grad for name, grad in zip(names, grads, strict=True)}
        narrow = [*names, *given] if half else []
        yield {"shape": torch.tensor([batch, time, channels])} | stored(inputs | made | given, narrow)


def pointwise() -> Iterator[Arrays]:
    for elements, half in ((1, False), (257, True), (9001, False), (9001, True)):
        x, gate, grad = random(elements, half=half), random(elements, half=half) * 8, random(elements, half=half)
        squared = differentiated(
            lambda x: [ops.relu_squared(x, backend="reference")], {"x": x}, ["squared"], [grad], torch.float64
        )
        gated = differentiated(
            lambda gate, x: [ops.gate(gate, x, backend="reference")],
            {"gate": gate, "x": x},
            ["gated"],
            [grad],
            torch.float64,
        )
        seed, p = torch.randint(2**63 - 1, (1,)), 0.3
        rest = {
            "squared": squared["squared"],
            "grad_squared": squared["grad_x"],
            **gated,
            "dropped": dropped(x, seed, p),
        }
        values = {"x": x, "gate": gate, "grad": grad, **rest}
        yield (
            {"shape": torch.tensor([elements]), "seed": seed}
            | numbers(p=p)
            | stored(values, list(values) if half else [])
        )


def dropped(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """Dropout as `pointwise.cpp` describes it: a hash of the position, keyed by the seed, is compared with p."""
    first, second = int(seed) & 0xFFFFFFFF, int(seed) >> 32
    h = np.arange(len(x), dtype=np.uint32) ^ np.uint32(first)
    for key in (second, None):
        h = (h ^ (h >> 16)) * np.uint32(0x7FEB352D)
        h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
        h = h ^ (h >> 16)
        if key is not None:
            h = h ^ np.uint32(key)
    below = int(float(np.float32(p)) * 2**32)
    return torch.where(torch.from_numpy(h.astype(np.int64)) >= below, x.double() / (1 - p), 0.0)


def cross_entropy() -> Iterator[Arrays]:
    for classes in (1, 63, 64, 300):
        for half in (False, True):
            logits, targets = random(6, classes, half=half) * 3, torch.randint(classes, (6,))
            logits = logits.to(HALF).float() if half else logits
            targets[2] = ops.IGNORED
            counted = [i for i in range(6) if i != 2]
            leaf = logits.double().requires_grad_()
            mean = ops.cross_entropy(leaf, targets, 0.01, backend="reference")
            (gradient,) = torch.autograd.grad(mean, leaf)
            losses = torch.zeros(6, dtype=torch.float64)
            losses[counted] = torch.nn.functional.cross_entropy(
                leaf[counted], targets[counted], reduction="none"
            ).detach()
            case = {"logits": logits, "losses": losses, "grad_losses": torch.full((6,), 1 / 5), "grad": gradient}
            narrow = ["logits", "grad"] if half else []
            yield (
                {"shape": torch.tensor([6, classes]), "targets": targets} | numbers(penalty=0.01) | stored(case, narrow)
            )


def divergence() -> Iterator[Arrays]:
    for classes in (1, 63, 64, 300):
        for half in (False, True):
            logits, teacher = random(6, classes, half=half), random(6, classes, half=half)
            leaf = logits.double().requires_grad_()
            (gradient,) = torch.autograd.grad(ops.divergence(leaf, teacher.double(), backend="reference"), leaf)
            log_p, log_q = teacher.double().log_softmax(-1), logits.double().log_softmax(-1)
            rows = (log_p.exp() * (log_p - log_q)).sum(-1)
            case = {"logits": logits, "teacher": teacher, "divergences": rows, "grad": gradient}
            narrow = ["logits", "teacher", "grad"] if half else []
            yield {"shape": torch.tensor([6, classes]), "grad_divergences": torch.full((6,), 1 / 6)} | stored(
                case, narrow
            )


def matvec() -> Iterator[Arrays]:
    for rows, inputs, outputs in ((1, 1, 1), (3, 63, 5), (8, 200, 33)):
        x, weight = random(rows, inputs), random(outputs, inputs)
        yield {"shape": torch.tensor([rows]), "x": x, "weight": weight, "y": x.double() @ weight.double().T}

"""From a packed model to integers only. Floats occur here, once, when constants are made; never when a token is computed.

C channels, V vocabulary. The constants are a flat dictionary of int32 arrays:

| name | shape | what |
| --- | --- | --- |
| `<matrix>.multiplier`, `.shift` | [groups, outputs], [1] | from sums of events x weights to its format |
| `<matrix>.event` | [3] | of the neuron in front: multiplier, offset, shift |
| `<matrix>.square` | [1] | where the neuron reads the square of its input: by how much it is shifted |
| `<norm>.gain`, `<norm>.shift`, `<norm>.bias` | [C], [1], [C] | |
| `<mix>.multiplier`, `<mix>.shift` | [C], [1] | token shift |
| `<block>.att.first`, `<block>.att.decay` | [C] | of the time mix, base 2, in the format `exponent` |
| `emb.mean`, `emb.multiplier`, `emb.shift` | [V], [V], [1] | the embedding's norm, known for each token |
| `table.exp`, `table.sigmoid`, `table.rsqrt`, `table.reciprocal` | | |
| `mean`, `epsilon` | [1] | 1 / C, and the norm's epsilon as a variance of the residual |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ...config import ModelConfig
from ...errors import UsageError, UserError
from ..integers import GROUP, IntegerModel, unhalve
from .formats import EMBEDDING_FRACTION, MEAN_BITS, SQUARE_TOP, Format, Formats

LOG2E = math.log2(math.e)
EPSILON = 1e-5
"""Of the layer norms."""

Constants = dict[str, np.ndarray]


@dataclass(frozen=True)
class FixedModel:
    """A model of integers: `weights` are the integer arrays of an `IntegerModel`, `constants` as in the module's table."""

    config: ModelConfig
    bits: int
    formats: Formats
    weights: dict[str, np.ndarray]
    constants: Constants = field(repr=False)

    @staticmethod
    def of(packed: IntegerModel, formats: Formats | None = None) -> FixedModel:
        """Turn every float of a packed model into integers; UsageError for neurons that remember.

        A key, a value and a receptance become integers of different units, so each is a matrix of its own.
        """
        check_fixed(packed.config)
        packed = packed.apart()
        formats = formats or Formats()
        return FixedModel.with_constants(packed, formats, _Maker(packed, formats).all())

    @staticmethod
    def with_constants(packed: IntegerModel, formats: Formats, constants: Constants) -> FixedModel:
        """The integers of a packed model beside constants made earlier; UserError where they do not fit each other."""
        if packed.config.event is not None and packed.config.event.shared:
            raise UserError(
                "key, value and receptance are one matrix here and three in constants; pack the model again"
            )
        weights = {name: array for name, array in packed.arrays.items() if array.dtype != np.float32}
        model = FixedModel(packed.config, packed.bits, formats, weights, constants)
        check_constants(model)
        return model

    def matrices(self) -> list[str]:
        """Names of the matrices, in the order they run."""
        return [name for name, _ in matrices(self.config)]

    def integers(self, matrix: str) -> np.ndarray:
        """[inputs, outputs] int8 weights of a matrix."""
        array = self.weights[f"{matrix}.weight"]
        return array if self.bits == 8 else unhalve(array, self.constants[f"{matrix}.multiplier"].shape[1])


def check_fixed(config: ModelConfig) -> None:
    """UsageError where the model cannot run in integers only."""
    if config.event is None:
        raise UsageError(
            f'this model has spikes="{config.spikes}", so its products read floats: '
            "train one with --spikes before, or turn this one into one with `spikegpt spikify`"
        )
    if config.event.has_membrane:
        raise UsageError(
            "this model's neurons have a leak, which the integers-only engine does not do; run it with --engine event, "
            "or train one with event.leak=0 event.learn_leak=false"
        )
    if config.task is not None and config.task.ngrams:
        raise UsageError(
            "this classifier has a look-up lane, which the integers-only engine does not do; run it with --engine event, "
            "or train one with `spikegpt finetune --lookup 0`"
        )


def is_time(config: ModelConfig, layer: int) -> bool:
    """Whether the first half of block `layer` is a time mix (`RWKV-ffnPre` begins with a channel mix)."""
    return layer > 0 or config.architecture != "RWKV-ffnPre"


def matrices(config: ModelConfig) -> list[tuple[str, str]]:
    """(matrix, format of its result) in the order they run; "" for the residual's format behind a gate."""
    found = []
    for layer in range(config.n_layer):
        mixes = [f"blocks.{layer}.att" if is_time(config, layer) else f"blocks.{layer}.ffnPre", f"blocks.{layer}.ffn"]
        for mix in mixes:
            if mix.endswith(".att"):
                kinds = {"key": "key", "value": "value", "receptance": "gate", "output": "residual"}
            else:
                kinds = {"key": "hidden", "receptance": "gate", "value": "residual"}
            found += [(f"{mix}.{site}", kind) for site, kind in kinds.items()]
    return found + [("head", "logit")]


def shapes(config: ModelConfig, formats: Formats, groups: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of all constants of a model; `groups` says how many inputs' scales each matrix has."""
    channels, vocabulary = (config.n_embd,), (config.vocab_size,)
    found: dict[str, tuple[int, ...]] = {
        "table.exp": (formats.exp_entries,), "table.sigmoid": (formats.sigmoid_entries,),
        "table.rsqrt": (formats.rsqrt_entries,),
        "table.reciprocal": (formats.reciprocal_entries,), "mean": (1,), "epsilon": (1,),
        "emb.mean": vocabulary, "emb.multiplier": vocabulary, "emb.shift": (1,),
    }  # fmt: skip
    norms = ["blocks.0.ln0", "ln_out"]
    for layer in range(config.n_layer):
        norms += [f"blocks.{layer}.ln1", f"blocks.{layer}.ln2"]
        time = is_time(config, layer)
        first = f"blocks.{layer}.att" if time else f"blocks.{layer}.ffnPre"
        mixes = [f"{first}.time_mix_{mix}" for mix in ("kvr" if time else "kr")]
        for mix in mixes + [f"blocks.{layer}.ffn.time_mix_{mix}" for mix in "kr"]:
            found |= {f"{mix}.multiplier": channels, f"{mix}.shift": (1,)}
        if time:
            found |= {f"{first}.first": channels, f"{first}.decay": channels}
    for norm in norms:
        found |= {f"{norm}.gain": channels, f"{norm}.shift": (1,), f"{norm}.bias": channels}
    for matrix, kind in matrices(config):
        outputs = {"hidden": config.hidden, "logit": config.outputs}.get(kind, config.n_embd)
        found |= {f"{matrix}.multiplier": (groups[matrix], outputs), f"{matrix}.shift": (1,), f"{matrix}.event": (3,)}
        if reads_square(matrix):
            found[f"{matrix}.square"] = (1,)
    return found


def loads(weights: np.ndarray, groups: int) -> np.ndarray:
    """[groups, outputs] sum of the magnitudes of each output's weights, group by group: what its sum is bounded by."""
    size = np.abs(weights.astype(np.int64))
    return size.sum(0)[None] if groups == 1 else np.add.reduceat(size, np.arange(0, len(size), GROUP))


def check_constants(model: FixedModel) -> None:
    """UserError unless every constant has its shape and is so small that no 32-bit value can overflow."""
    formats, constants, event = model.formats, model.constants, model.config.event
    assert event is not None
    groups = {
        matrix: 1 if model.bits == 8 else -(-len(model.weights[f"{matrix}.weight"]) // GROUP)
        for matrix in model.matrices()
    }
    wanted = shapes(model.config, formats, groups)
    for name in sorted(wanted.keys() | constants.keys()):
        found = constants[name].shape if name in constants else None
        if found != wanted.get(name):
            raise UserError(f"the constant {name} has shape {found}, not {wanted.get(name)}; pack the model again")
        low, high = _range(name, formats)
        if constants[name].min() < low or constants[name].max() > high:
            raise UserError(f"the constant {name} is not within {low} to {high}; pack the model again")
    for matrix in model.matrices():
        multiplier = constants[f"{matrix}.multiplier"].astype(np.int64)
        bound = (event.levels * loads(model.integers(matrix), len(multiplier)) * np.abs(multiplier)).sum(0)
        by, of_event = int(constants[f"{matrix}.shift"][0]), constants[f"{matrix}.event"].astype(np.int64)
        top = SQUARE_TOP if reads_square(matrix) else max(formats.norm.top, formats.output.top)
        largest = max(int(bound.max()) + (1 << by >> 1), top * int(of_event[0]) + max(int(of_event[1]), 0))
        if largest >= 1 << 31:
            raise UserError(f"sums of {matrix} may pass 32 bits; pack the model again")


def _range(name: str, formats: Formats) -> tuple[int, int]:
    """Smallest and largest value that a constant of this name may have."""
    one, multiplier = 1 << formats.table_bits, (1 << (formats.multiplier - 1)) - 1
    if name.startswith("table."):
        return 0, one
    if name == "emb.multiplier":
        return 0, (1 << 14) - 1
    symmetric = {
        "emb.mean": 1 << 15, "first": formats.exponent.top, "decay": formats.exponent.top, "bias": formats.norm.top,
        "gain": multiplier, "multiplier": multiplier, "event": 1 << 30,
    }  # fmt: skip
    low_and_high = {
        "emb.shift": (max(0, formats.norm.fraction - EMBEDDING_FRACTION), 30), "shift": (0, 30), "square": (0, 15),
        "mean": (1, 1 << MEAN_BITS), "epsilon": (1, 1 << 16),
    }  # fmt: skip
    for key in (name, name.rpartition(".")[2]):
        if key in low_and_high:
            return low_and_high[key]
        if key in symmetric:
            return -symmetric[key], symmetric[key]
    raise UserError(f"there is no constant {name}; pack the model again")


def neuron_of(matrix: str) -> str:
    """Name of the neuron in front of a matrix."""
    if matrix == "head":
        return "head_neuron"
    mix, _, site = matrix.rpartition(".")
    return f"{mix}.neurons.{site}"


def reads_square(matrix: str) -> bool:
    """Whether the matrix reads the hidden layer of a channel mix: relu(x)^2."""
    return matrix.endswith((".ffn.value", ".ffnPre.value"))


class _Maker:
    """Makes the constants of one model."""

    def __init__(self, packed: IntegerModel, formats: Formats) -> None:
        self._config, self._bits, self._arrays, self._formats = packed.config, packed.bits, packed.arrays, formats
        assert packed.config.event is not None
        self._levels = packed.config.event.levels
        self._made: Constants = {}

    def all(self) -> Constants:
        self._tables()
        self._embedding()
        channels = self._config.n_embd
        self._put("mean", [round((1 << MEAN_BITS) / channels)])
        self._put("epsilon", [max(1, round(EPSILON * 4.0**self._formats.residual.fraction))])
        self._norm("blocks.0.ln0")
        for layer in range(self._config.n_layer):
            self._block(layer)
        self._norm("ln_out")
        for matrix, kind in matrices(self._config):
            self._matrix(matrix, getattr(self._formats, kind), LOG2E if kind == "key" else 1.0)
            self._neuron(matrix)
        return self._made

    def _put(self, name: str, values: np.ndarray | list[int]) -> None:
        self._made[name] = np.asarray(values).astype(np.int32)

    def _tables(self) -> None:
        formats, one = self._formats, 1 << self._formats.table_bits
        middle = np.arange(formats.exp_entries) + 0.5
        self._put("table.exp", np.round(one * 2.0 ** (-middle / formats.exp_entries)))
        middle = (np.arange(formats.sigmoid_entries) + 0.5) * 16 / formats.sigmoid_entries - 8
        self._put("table.sigmoid", np.round(one / (1 + np.exp(-middle))))
        middle = 1 + (np.arange(formats.rsqrt_entries) + 0.5) * 3 / formats.rsqrt_entries
        self._put("table.rsqrt", np.round(one / np.sqrt(middle)))
        middle = 1 + (np.arange(formats.reciprocal_entries) + 0.5) / formats.reciprocal_entries
        self._put("table.reciprocal", np.round(one / middle))

    def _embedding(self) -> None:
        """Mean and 1 / deviation of each token's embedding; epsilon is the float model's, in units of the integers."""
        if self._config.spike_embedding:
            table = (self._arrays["emb.weight"] >= 0).astype(np.float64)
            scale = np.ones(len(table))
        else:
            table = self._arrays["emb.weight"].astype(np.float64)
            scale = self._arrays["emb.scale"].astype(np.float64)
        mean = table.mean(1)
        variance = table.var(1)
        inverse = np.where(variance > 0, 1 / np.sqrt(variance + EPSILON / scale**2), 0)
        self._put("emb.mean", np.round(mean * 2.0**EMBEDDING_FRACTION))
        self._scaled("emb", inverse, bits=15)

    def _norm(self, name: str) -> None:
        gain = self._arrays[f"{name}.weight"].astype(np.float64)
        bias = self._arrays[f"{name}.bias"].astype(np.float64)
        multiplier, shift = _multiplier(gain, self._formats.multiplier)
        self._put(f"{name}.gain", multiplier)
        self._put(f"{name}.shift", [shift])
        self._put(f"{name}.bias", _clip(np.round(bias * 2.0**self._formats.norm.fraction), self._formats.norm))

    def _block(self, layer: int) -> None:
        block = f"blocks.{layer}"
        self._norm(f"{block}.ln1")
        self._norm(f"{block}.ln2")
        parts = {f"{block}.att": "kvr"} if is_time(self._config, layer) else {f"{block}.ffnPre": "kr"}
        for part, mixes in (parts | {f"{block}.ffn": "kr"}).items():
            for mix in mixes:
                name = f"{part}.time_mix_{mix}"
                self._scaled(name, self._arrays[name].reshape(-1).astype(np.float64))
            if part.endswith(".att"):
                one = LOG2E * 2.0**self._formats.exponent.fraction
                first = self._arrays[f"{part}.time_first"].astype(np.float64) * one
                decay = -np.exp(self._arrays[f"{part}.time_decay"].astype(np.float64)) * one
                self._put(f"{part}.first", _clip(np.round(first), self._formats.exponent))
                self._put(f"{part}.decay", _clip(np.round(decay), self._formats.exponent))

    def _scaled(self, name: str, values: np.ndarray, bits: int | None = None) -> None:
        bits = bits or self._formats.multiplier
        multiplier, shift = _multiplier(values, bits)
        self._put(f"{name}.multiplier", multiplier)
        self._put(f"{name}.shift", [shift])

    def _matrix(self, matrix: str, to: Format, factor: float) -> None:
        """Multipliers with as many bits as keep the largest possible sum of products within 32."""
        scale, array = self._arrays[f"{matrix}.scale"].astype(np.float64), self._arrays[f"{matrix}.weight"]
        load = loads(array if self._bits == 8 else unhalve(array, scale.shape[1]), len(scale))
        unit = float(self._arrays[f"{neuron_of(matrix)}.unit"][0])
        values = np.where(load > 0, scale, 0) * unit * factor * 2.0**to.fraction
        for bits in range(self._formats.multiplier, 1, -1):
            multiplier, shift = _multiplier(values, bits)
            largest = (self._levels * load * np.abs(multiplier)).sum(0).max() + (1 << shift >> 1)
            if largest < 1 << 31:
                break
        else:
            raise UsageError(f"the sums of {matrix} pass 32 bits: its inputs are too many for the integers-only engine")
        self._put(f"{matrix}.multiplier", multiplier)
        self._put(f"{matrix}.shift", [shift])

    def _neuron(self, matrix: str) -> None:
        """ceil((x - threshold) / unit) as (x * multiplier + offset) >> shift, for x in the format of the matrix's input."""
        threshold = float(self._arrays[f"{neuron_of(matrix)}.threshold"][0])
        unit = float(self._arrays[f"{neuron_of(matrix)}.unit"][0])
        if reads_square(matrix):
            one = 4.0**self._formats.hidden.fraction
            square = max(0, math.ceil(math.log2(max((threshold + self._levels * unit) * one, 1) / SQUARE_TOP)))
            square = min(square, 2 * self._formats.hidden.width - 2 - SQUARE_TOP.bit_length())
            self._put(f"{matrix}.square", [square])
            one, top = one / 2.0**square, SQUARE_TOP
        else:
            at = self._formats.output if matrix.endswith(".att.output") else self._formats.norm
            one, top = 2.0**at.fraction, at.top
        threshold = min(max(threshold * one, 0.0), float(top))
        unit = min(max(unit * one, 2.0**-10), float(top))
        shift = max(0, 10 + math.floor(math.log2(unit)))
        multiplier = max(1, round(2.0**shift / unit))
        offset = (1 << shift) - 1 - round(threshold * multiplier)  # fires exactly where x > threshold
        self._put(f"{matrix}.event", [multiplier, offset, shift])


def _multiplier(values: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """Integers m of `bits` bits and one shift: value ~ m / 2^shift. Never a negative shift: values stay below 2^(bits-1)."""
    top = (1 << (bits - 1)) - 1
    largest = float(np.abs(values).max(initial=0))
    if largest == 0:
        return np.zeros(values.shape, np.int64), 0
    shift = min(math.floor(math.log2(top / largest)), 30)
    if shift < 0:
        raise UsageError(f"a scale of {largest:g} is too large for the integers-only engine")
    return np.round(values * 2.0**shift).astype(np.int64), shift


def _clip(values: np.ndarray, to: Format) -> np.ndarray:
    return np.clip(values, -to.top, to.top)

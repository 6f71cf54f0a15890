"""The integers-only model, token by token: the specification that every other implementation equals bit for bit.

C channels, V vocabulary. Every array holds integers; `Reference.stored` asserts that a value fits its format, `wide` that
an intermediate fits its register. Right shifts round to nearest, halves up, unless a line says otherwise; they are arithmetic.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..integers import GROUP
from .formats import EMBEDDING_FRACTION, LOG2_DISTANCE, MEAN_BITS, SQUARE_TOP, Format
from .model import FixedModel, is_time, reads_square

State = dict[str, np.ndarray]
"""`blocks.0.att.shift` [C], `blocks.0.att.wkv` [3, C] (numerator, denominator, exponent), `blocks.0.ffn.shift` [C], ..."""


@dataclass
class Reference:
    """`logits, state = reference.step(token, state)`; nothing is kept but counts."""

    model: FixedModel

    def __post_init__(self) -> None:
        self.saturations: Counter[str] = Counter()
        """How many values were cut off at the width of their format, by format."""
        self.fired: Counter[str] = Counter()
        """Events by matrix."""
        self._constants = {name: array.astype(np.int64) for name, array in self.model.constants.items()}
        self._weights = {name: self.model.integers(name) for name in self.model.matrices()}
        self._formats = self.model.formats

    def start(self) -> State:
        """The state before any token."""
        channels, state = self.model.config.n_embd, {}
        for layer in range(self.model.config.n_layer):
            for part in ("att", "ffn"):
                state[f"blocks.{layer}.{part}.shift"] = np.zeros(channels, np.int64)
                if part == "att" and is_time(self.model.config, layer):
                    wkv = np.zeros((3, channels), np.int64)
                    wkv[2] = -self._formats.exponent.top
                    state[f"blocks.{layer}.att.wkv"] = wkv
        return state

    def step(self, token: int, state: State) -> tuple[np.ndarray, State]:
        """One token: logits [V] in the format `logit`, and the next state."""
        formats, state = self._formats, dict(state)
        x = self.embed(token)
        for layer in range(self.model.config.n_layer):
            block = f"blocks.{layer}"
            part = "att" if is_time(self.model.config, layer) else "ffnPre"
            mix = self.time_mix if part == "att" else self.channel_mix
            y = mix(f"{block}.{part}", f"{block}.att", self.norm(x, f"{block}.ln1"), state)
            x = self.stored("residual", x + y, formats.residual)
            y = self.channel_mix(f"{block}.ffn", f"{block}.ffn", self.norm(x, f"{block}.ln2"), state)
            x = self.stored("residual", x + y, formats.residual)
        return self.project("head", self.norm(x, "ln_out"), formats.logit), state

    # ---- the parts of a token

    def embed(self, token: int) -> np.ndarray:
        """The embedding and its norm, of which mean and 1 / deviation are constants of the token."""
        row = self.model.weights["emb.weight"][token].astype(np.int64)
        if self.model.config.spike_embedding:
            row = (row >= 0).astype(np.int64)
        distance = (row << EMBEDDING_FRACTION) - self._constants["emb.mean"][token]
        scaled = wide(distance * self._constants["emb.multiplier"][token])
        by = int(self._constants["emb.shift"][0]) + EMBEDDING_FRACTION - self._formats.norm.fraction
        y = self.gain(rounded(scaled, by), "blocks.0.ln0")
        y = rounded(y, self._formats.norm.fraction - self._formats.residual.fraction)
        return self.stored("residual", y, self._formats.residual)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """(x - mean) / deviation x gain + bias."""
        formats, of_mean = self._formats, int(self._constants["mean"][0])
        mean = rounded(wide(x.sum()) * of_mean, MEAN_BITS)
        distance = self.stored("norm's distance", x - mean, formats.residual)
        variance = (wide((distance * distance).sum(), 64) * of_mean >> MEAN_BITS) + int(self._constants["epsilon"][0])
        # variance = mantissa x 4^exponent, mantissa in [1, 4); the table has its middle values
        exponent = (int(variance).bit_length() - 1) // 2
        quarter = formats.rsqrt_entries // 3
        index = (int(variance) * quarter >> 2 * exponent) - quarter
        scaled = wide(distance * int(self._constants["table.rsqrt"][index]))
        return self.gain(rounded(scaled, formats.table_bits + exponent - formats.norm.fraction), name)

    def gain(self, normalised: np.ndarray, name: str) -> np.ndarray:
        normalised = self.stored("normalised", normalised, self._formats.norm)
        scaled = rounded(wide(normalised * self._constants[f"{name}.gain"]), int(self._constants[f"{name}.shift"][0]))
        return self.stored("norm", scaled + self._constants[f"{name}.bias"], self._formats.norm)

    def shift_mix(self, now: np.ndarray, last: np.ndarray, name: str) -> np.ndarray:
        """last + (now - last) x mix."""
        step = wide((now - last) * self._constants[f"{name}.multiplier"])
        return self.stored("norm", last + rounded(step, int(self._constants[f"{name}.shift"][0])), self._formats.norm)

    def events(self, x: np.ndarray, matrix: str) -> np.ndarray:
        """What the neuron in front of `matrix` says: 0, or a small integer."""
        multiplier, offset, by = (int(value) for value in self._constants[f"{matrix}.event"])
        event = self.model.config.event
        assert event is not None
        size = np.abs(x) if event.signed and not reads_square(matrix) else np.maximum(x, 0)
        if reads_square(matrix):
            size = np.minimum(size * size >> int(self._constants[f"{matrix}.square"][0]), SQUARE_TOP)  # no rounding
        count = np.minimum(wide(size * multiplier + offset) >> by, event.levels)  # no rounding: offset rounds up
        count = np.where(count < event.smallest, 0, np.where(x < 0, -count, count))
        self.fired[matrix] += int(np.count_nonzero(count))
        return count

    def project(self, matrix: str, x: np.ndarray, to: Format) -> np.ndarray:
        """x by way of the neuron through the matrix, in the format `to`: only rows of inputs that fire are read."""
        events, weights = self.events(x, matrix), self._weights[matrix]
        multiplier = self._constants[f"{matrix}.multiplier"]
        total, per_group = np.zeros(multiplier.shape[1], np.int64), len(weights) if len(multiplier) == 1 else GROUP
        for group, scale in enumerate(multiplier):
            inputs = slice(group * per_group, (group + 1) * per_group)
            fired = np.flatnonzero(events[inputs])
            rows = weights[inputs][fired].astype(np.int64)
            total = wide(total + wide(events[inputs][fired] @ rows) * scale)
        name = next(name for name, value in self._formats.values().items() if value is to)
        return self.stored(name, rounded(total, int(self._constants[f"{matrix}.shift"][0])), to)

    def sigmoid(self, x: np.ndarray) -> np.ndarray:
        """Of x in the format `gate`, with `table_bits`: constant outside of [-8, 8)."""
        fraction, table = self._formats.gate.fraction, self._constants["table.sigmoid"]
        at = np.clip(x + (8 << fraction), 0, (16 << fraction) - 1)
        return table[at * len(table) >> fraction + 4]

    def power(self, distance: np.ndarray) -> np.ndarray:
        """2^-distance with `table_bits`, of a distance >= 0 in the format `exponent`."""
        fraction, table = self._formats.exponent.fraction, self._constants["table.exp"]
        part = (distance & (1 << fraction) - 1) * len(table) >> fraction
        return rounded(table[part], np.minimum(distance >> fraction, LOG2_DISTANCE))

    def divide(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """a / b in the format `output`; b in the format `denominator` is at least 1/2. One Newton step from a table."""
        formats, table = self._formats, self._constants["table.reciprocal"]
        bits = np.array([int(value).bit_length() - 1 for value in b])
        mantissa = np.where(bits > 15, b >> np.maximum(bits - 15, 0), b << np.maximum(15 - bits, 0))  # [2^15, 2^16)
        guess = table[(mantissa - (1 << 15)) * len(table) >> 15]
        inverse = wide(guess * ((1 << 31) - mantissa * guess >> 15)) >> 15  # 2^30 / mantissa
        return rounded(wide(a * inverse, 41), 15 + bits - formats.output.fraction)

    def average(self, ahead: np.ndarray, past: np.ndarray, now: np.ndarray) -> np.ndarray:
        """past x 2^min(ahead, 0) + now x 2^-max(ahead, 0): the sum of two values, one of which fades."""
        faded, kept = np.where(ahead < 0, past, now), np.where(ahead < 0, now, past)
        return kept + rounded(wide(self.power(np.abs(ahead)) * faded, 40), self._formats.table_bits)

    def wkv(self, mix: str, k: np.ndarray, v: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One token of the average, and its state [3, C]; key and exponents base 2."""
        formats = self._formats
        numerator, denominator, exponent = state
        k = k << formats.exponent.fraction - formats.key.fraction
        v = v << formats.numerator.fraction - formats.value.fraction
        one = np.full_like(k, 1 << formats.denominator.fraction)
        ahead = exponent - (k + self._constants[f"{mix}.first"])
        above, below = self.average(ahead, numerator, v), self.average(ahead, denominator, one)
        y = self.divide(above, np.clip(below, 1 << formats.denominator.fraction - 1, (1 << 24) - 1))
        faded = np.maximum(exponent + self._constants[f"{mix}.decay"], -formats.exponent.top)
        ahead = faded - k
        numerator = self.stored("numerator", self.average(ahead, numerator, v), formats.numerator)
        denominator = self.stored("denominator", self.average(ahead, denominator, one), formats.denominator)
        exponent = self.stored("exponent", np.maximum(faded, k), formats.exponent)
        return self.stored("output", y, formats.output), np.stack([numerator, denominator, exponent])

    def time_mix(self, mix: str, kept: str, h: np.ndarray, state: State) -> np.ndarray:
        formats, last = self._formats, state[f"{kept}.shift"]
        k = self.project(f"{mix}.key", self.shift_mix(h, last, f"{mix}.time_mix_k"), formats.key)
        v = self.project(f"{mix}.value", self.shift_mix(h, last, f"{mix}.time_mix_v"), formats.value)
        r = self.project(f"{mix}.receptance", self.shift_mix(h, last, f"{mix}.time_mix_r"), formats.gate)
        state[f"{kept}.shift"] = h
        y, state[f"{kept}.wkv"] = self.wkv(mix, k, v, state[f"{kept}.wkv"])
        gated = rounded(wide(y * self.sigmoid(r)), formats.table_bits)
        return self.project(f"{mix}.output", gated, formats.residual)

    def channel_mix(self, mix: str, kept: str, h: np.ndarray, state: State) -> np.ndarray:
        formats, last = self._formats, state[f"{kept}.shift"]
        k = self.project(f"{mix}.key", self.shift_mix(h, last, f"{mix}.time_mix_k"), formats.hidden)
        r = self.project(f"{mix}.receptance", self.shift_mix(h, last, f"{mix}.time_mix_r"), formats.gate)
        state[f"{kept}.shift"] = h
        v = self.project(f"{mix}.value", k, formats.residual)
        return rounded(wide(v * self.sigmoid(r)), formats.table_bits)

    def stored(self, name: str, x: np.ndarray, to: Format) -> np.ndarray:
        """x cut off at the width of its format."""
        assert np.asarray(x).dtype.kind == "i", f"{name} is no integer"
        over = int(np.count_nonzero(np.abs(x) > to.top))
        if over:
            self.saturations[name] += over
        return np.clip(x, -to.top, to.top)


def rounded(x: np.ndarray, by: int | np.ndarray) -> np.ndarray:
    """x / 2^by to the nearest, halves up; by < 0 multiplies."""
    if np.ndim(by) == 0 and by <= 0:
        return x << -by
    return x + (np.int64(1) << by >> 1) >> by


def wide(x: np.ndarray, bits: int = 32) -> np.ndarray:
    """x, which must fit a register of so many bits."""
    assert np.asarray(x).dtype.kind == "i", "an intermediate is no integer"
    assert bits > 63 or np.abs(x).max(initial=0) < 1 << (bits - 1), f"an intermediate passes {bits} bits"
    return x

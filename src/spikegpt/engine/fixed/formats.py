"""The number formats of the integers-only model: `width.fraction` of every stored value, and the sizes of its tables.

A value of format 16.10 is an integer of 16 bits, sign included, that stands for itself / 2^10. Values are saturated
symmetrically, to at most 2^(width-1) - 1 on either side.
"""

# ruff: noqa: RUF009 (a Format is immutable)

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...errors import UserError

VERSION = 1
"""Of the arithmetic and of `fixed.json`; another one is refused."""
MEAN_BITS = 24
"""1 / channels is round(2^24 / channels) / 2^24."""
EMBEDDING_FRACTION = 8
"""Fraction bits of the mean of a token's embedding."""
SQUARE_TOP = (1 << 19) - 1
"""Largest square of a hidden value, after its shift."""
LOG2_DISTANCE = 16
"""2^-n is 0 from n = 16 on: less than half a unit of the exponential's 15 bits."""


class Format(NamedTuple):
    """Bits of a stored value, sign included, and how many of them stand behind the binary point."""

    width: int
    fraction: int

    @property
    def top(self) -> int:
        """The largest integer of this width; the smallest is its negative."""
        return (1 << (self.width - 1)) - 1

    def __str__(self) -> str:
        return f"{self.width}.{self.fraction}"

    @staticmethod
    def of(text: str) -> Format:
        """The inverse of `str`."""
        width, fraction = text.split(".")
        return Format(int(width), int(fraction))


@dataclass(frozen=True, kw_only=True)
class Formats:
    """The format of every kind of value. Products of two of them fit 32 bits, which `__post_init__` checks."""

    residual: Format = Format(16, 8)
    """The residual that every mix adds to."""
    norm: Format = Format(16, 10)
    """Layer norms' outputs, the token shift and what the neurons behind it read."""
    key: Format = Format(16, 8)
    """Keys, times log2(e): the exponentials are powers of 2."""
    value: Format = Format(16, 8)
    """Values of the time mix."""
    gate: Format = Format(16, 8)
    """Receptances, inputs of the sigmoid."""
    hidden: Format = Format(16, 10)
    """The channel mix's hidden layer before it is squared."""
    output: Format = Format(16, 10)
    """The WKV average, and the same behind its gate."""
    exponent: Format = Format(24, 16)
    """State: the largest exponent, base 2; also the decay and the bonus of the current token."""
    numerator: Format = Format(24, 12)
    """State: the sum of weighted values."""
    denominator: Format = Format(24, 12)
    """State: the sum of weights."""
    logit: Format = Format(16, 8)
    """What the model says."""
    multiplier: int = 12
    """Bits of the multipliers that stand for scales, gains and mixes, sign included; fewer where 32-bit sums demand it."""
    exp_entries: int = 32
    sigmoid_entries: int = 128
    rsqrt_entries: int = 192
    """Of 1 / sqrt(x) for x in [1, 4): three quarters of a power of 2."""
    reciprocal_entries: int = 64
    table_bits: int = 15
    """Fraction bits of all tables."""

    def __post_init__(self) -> None:
        for name, value in self.values().items():
            if not 1 <= value.fraction < value.width <= 24:
                raise UserError(f"format {name} = {value} is none of at most 24 bits")
        narrow = (self.residual, self.norm, self.key, self.value, self.gate, self.hidden, self.output, self.logit)
        if max(value.width for value in narrow) > 16 or self.multiplier > 12:
            raise UserError("activations of more than 16 bits or multipliers of more than 12 overflow")
        if not 9 <= self.table_bits <= 15:
            raise UserError(f"table_bits={self.table_bits} must be 9 to 15")
        if self.numerator != self.denominator or self.value.fraction > self.numerator.fraction:
            raise UserError("numerator and denominator must have one format, with at least the fraction of the value")
        if self.exponent.fraction < max(self.key.fraction, _log2(self.exp_entries)):
            raise UserError("the exponent needs at least the fraction of the key")
        if self.denominator.fraction < max(9, self.output.fraction - 5):
            raise UserError("the denominator needs a fraction of 9 or more, and not much less than the output's")
        if self.norm.fraction < self.residual.fraction or self.table_bits < self.norm.fraction:
            raise UserError("the norm needs a fraction between the residual's and the tables'")
        for count in (self.exp_entries, self.sigmoid_entries, self.rsqrt_entries * 4 // 3, self.reciprocal_entries):
            if count != 1 << _log2(count) or count < 8:
                raise UserError(f"a table of {count} entries: powers of 2 only")

    def values(self) -> dict[str, Format]:
        """The formats by name."""
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in fields if isinstance(value, Format)}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: formats as "16.10", sizes as integers."""
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: str(value) if isinstance(value, Format) else value for name, value in fields}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Formats:
        """The inverse of `to_dict`; UserError for unknown names and for values that are none."""
        known = {field.name: field.default for field in dataclasses.fields(Formats)}
        if set(values) != set(known):
            raise UserError(f"formats must be {', '.join(known)}")
        try:
            parsed: dict[str, Any] = {
                name: Format.of(value) if isinstance(known[name], Format) else int(value)
                for name, value in values.items()
            }
        except (ValueError, AttributeError) as error:
            raise UserError(f"a format that is none: {error}") from None
        return Formats(**parsed)


def _log2(count: int) -> int:
    return count.bit_length() - 1

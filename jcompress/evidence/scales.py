"""Numbers as places on an axis, and as text."""

import dataclasses
import math
from collections.abc import Sequence

_LOG_FROM = 30.0
"""An axis is logarithmic from this ratio of the largest to the least number on."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`.

    Attributes:
        low: the number at its beginning.
        high: the number at its end.
        log: whether equal distances are equal ratios.
        ticks: the numbers that are marked on it.
    """

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], *, zero: bool = False) -> "Scale":
        """An axis on which all values have a place, from and to round numbers.

        Args:
            values: finite numbers, at least one.
            zero: whether it begins at 0, and so is linear.
        """
        low, high = min(values), max(values)
        if not zero and low > 0 and high / low > _LOG_FROM:
            return cls._logarithmic(low, high)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
        step = _round_step((high - low) / 4)
        first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
        ticks = tuple(step * n for n in range(first, last + 1))
        return cls(ticks[0], ticks[-1], False, ticks)

    @classmethod
    def _logarithmic(cls, low: float, high: float) -> "Scale":
        low, high = _below(low), 1 / _below(1 / high)
        first = math.ceil(math.log10(low) - 1e-9)
        last = math.floor(math.log10(high) + 1e-9)
        every = math.ceil((last - first) / 5) or 1
        parts = (1, 2, 5) if high / low <= 100 else (1,)
        first -= len(parts) > 1  # 2 and 5 times the power below
        ticks = tuple(
            tick
            for power in range(first, last + 1, every)
            for part in parts
            if low * (1 - 1e-9) <= (tick := part * 10.0**power) <= high * (1 + 1e-9)
        )
        return cls(low, high, True, ticks)

    def at(self, value: float) -> float:
        """The place of a number: 0 at the beginning, 1 at the end."""
        low, high, value = (
            map(math.log10, (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return (value - low) / (high - low)


def _below(value: float) -> float:
    """The greatest 1, 2 or 5 times a power of 10 that is not above a number."""
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return power * next(n for n in (5, 2, 1) if n * power <= value * (1 + 1e-9))


def _round_step(size: float) -> float:
    power = 10.0 ** math.floor(math.log10(size))
    return power * next(n for n in (1, 2, 5, 10) if n * power >= size * (1 - 1e-9))


def percent(part: float) -> str:
    """A place on an axis as a length of SVG."""
    return f"{100 * part:.2f}%"


def short(number: float | None) -> str:
    """A number in about three digits: "0.0123", "1.2e-5", "45.6M"."""
    if number is None:
        return "\N{EN DASH}"
    size = abs(number)
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        # 999,999 is 1M, not 1e+03k.
        if size >= 0.9995 * unit:
            return f"{number / unit:.3g}{name}"
    if size >= 1e4:
        return f"{number / 1e3:.3g}k"
    text = f"{number:.3g}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def bytes_text(count: float) -> str:
    """Bytes in about three digits: "812 B", "16.9 kB", "1.92 MB"."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        # 999,999 is 1 MB, not 1e+03 kB.
        if count >= 0.9995 * unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"


def seconds_text(seconds: float) -> str:
    """A time in about three digits: "12.3 µs", "4.5 ms", "1.2 s"."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= 0.9995 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.3g} µs"

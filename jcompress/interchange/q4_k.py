"""Rounding weights to blocks of Q4_K: which scales and minima make the least error."""

import itertools

import numpy as np

from jcompress.interchange.files import Host
from jcompress.interchange.gguf_blocks import close_q4_k

_MOST = np.float32(15)
_MOST_STEPS = np.float32(63)
_FRACTIONS = np.linspace(1, 0.75, 11, dtype=np.float32)
"""Parts of the full range whose rounding error is compared."""
_ROUNDS = 3
"""How often scale and minimum are fitted to the numbers, and the numbers to them."""
_NEIGHBOURS = tuple(map(np.float32, (0, -1, 1)))
"""How far a number of 6 bits may be from the nearest one."""


def quantize_q4_k(rows: Host) -> Host:
    """Round rows of floats to blocks of Q4_K.

    For each 32 numbers the squared error is searched over parts of their range, and
    scale and minimum are fitted to the numbers that this gives by least squares. Both
    are rounded to 6 bits of what all 256 share, down, up or further, whatever makes
    the least error with the numbers chosen anew.

    Args:
        rows: float32 [M, 256].

    Returns:
        uint8 [M, 144], the bytes of the blocks.

    Raises:
        ValueError: a number is not finite, or too large for a scale of float16.
    """
    x = rows.reshape(-1, 8, 32)
    if not np.isfinite(x).all():
        raise ValueError("a number is not finite")
    scale, minimum = _searched(x)
    shared, steps = _rounded(scale)
    shared_minimum, minima = _rounded(minimum)
    unit = shared.astype(np.float32)[:, None]
    unit_minimum = shared_minimum.astype(np.float32)[:, None]
    best = _Best(x)
    for near, near_minimum in itertools.product(_NEIGHBOURS, _NEIGHBOURS):
        step = np.clip(steps + near, np.float32(0), _MOST_STEPS)
        part = np.clip(minima + near_minimum, np.float32(0), _MOST_STEPS)
        values = _nearest(x, unit * step, unit_minimum * part)
        best.offer(values, unit * step, unit_minimum * part, step, part)
    steps, minima = best.kept
    values = _nearest(x, unit * steps, unit_minimum * minima).astype(np.uint8)
    return close_q4_k(
        values.reshape(-1, 256),
        steps.astype(np.uint8),
        minima.astype(np.uint8),
        shared,
        shared_minimum,
    )


class _Best:
    """What made the least squared error so far, of each group by itself."""

    def __init__(self, x: Host) -> None:
        self._x = x
        self._least = np.full(x.shape[:-1], np.inf, np.float32)
        self.kept: tuple[Host, Host] = (
            np.zeros_like(self._least),
            np.zeros_like(self._least),
        )

    def offer(
        self, values: Host, scale: Host, minimum: Host, first: Host, second: Host
    ) -> None:
        """Keep `first` and `second` where these numbers are better."""
        stretched = values * scale[..., None] - minimum[..., None]
        error = np.square(stretched - self._x).sum(axis=-1)
        better = error < self._least
        self._least = np.where(better, error, self._least)
        old_first, old_second = self.kept
        self.kept = (
            np.where(better, first, old_first),
            np.where(better, second, old_second),
        )


def _searched(x: Host) -> tuple[Host, Host]:
    """Scales and minima, float32 [M, 8], neither below 0, for x [M, 8, 32]."""
    low = np.minimum(x.min(axis=-1), np.float32(0))
    high = np.maximum(x.max(axis=-1), np.float32(0))
    best = _Best(x)
    for fraction in _FRACTIONS:
        scale, minimum = (high - low) * (fraction / _MOST), -low * fraction
        for _ in range(_ROUNDS):
            values = _nearest(x, scale, minimum)
            best.offer(values, scale, minimum, scale, minimum)
            scale, minimum = _fitted(x, values)
    return best.kept


def _nearest(x: Host, scale: Host, minimum: Host) -> Host:
    inverse = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0)
    steps = (x + minimum[..., None]) * inverse.astype(np.float32)[..., None]
    return np.clip(np.round(steps), np.float32(0), _MOST)


def _fitted(x: Host, values: Host) -> tuple[Host, Host]:
    """The scale and minimum of least squared error for numbers that are given."""
    mean_x, mean = x.mean(axis=-1), values.mean(axis=-1)
    spread = values - mean[..., None]
    power = np.square(spread).sum(axis=-1)
    slope = (spread * x).sum(axis=-1) / np.where(power > 0, power, np.float32(1))
    minimum = slope * mean - mean_x
    # A minimum above all numbers is not stored: the line then goes through 0.
    whole = np.square(values).sum(axis=-1)
    through = (values * x).sum(axis=-1) / np.where(whole > 0, whole, np.float32(1))
    slope = np.where(minimum < 0, through, slope)
    zero = np.float32(0)
    return np.maximum(slope, zero), np.maximum(minimum, zero)


def _rounded(scale: Host) -> tuple[Host, Host]:
    """A float16 for each 8 scales, and multiples of it of 6 bits, in float32."""
    with np.errstate(over="ignore"):
        shared = (scale.max(axis=-1) / _MOST_STEPS).astype(np.float16)
    if not np.isfinite(shared).all():
        raise ValueError("a number is too large for a scale of float16")
    wide = shared.astype(np.float32)[:, None]
    steps = np.round(scale / np.where(wide > 0, wide, np.float32(1)))
    return shared, np.clip(np.where(wide > 0, steps, 0), np.float32(0), _MOST_STEPS)

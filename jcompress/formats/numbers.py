"""Which numbers a quantized array is made of, and how others are rounded to them.

A format says nothing of scales: its numbers are those that are stored, before a scale
stretches them. `Weights` and `Activation` combine one with what shares a scale.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats.packing import FLOAT8

_EXPONENT = 0x7F800000
"""The exponent's bits in a float32."""


@dataclasses.dataclass(frozen=True)
class Int:
    """Integers of a number of bits, stored as int8 or, up to 4 bits, without gaps.

    Symmetric: `[-(2^(bits-1) - 1), 2^(bits-1) - 1]`, where 0 stands for 0.
    Asymmetric: `[-2^(bits-1), 2^(bits-1) - 1]` with an integer that stands for 0, its
    zero point (Jacob et al. 2018, "Quantization and Training of Neural Networks for
    Efficient Integer-Arithmetic-Only Inference", section 2.1).

    Attributes:
        bits: bits of a number, 2 to 8.
        symmetric: whether the range is centred at 0.

    Raises:
        ValueError: `bits` is not an int from 2 to 8.
        TypeError: `symmetric` is not a bool.
    """

    bits: int
    symmetric: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        bits = self.bits
        if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
            raise ValueError(f"Int: bits is an int from 2 to 8, not {bits!r}")
        if not isinstance(self.symmetric, bool):
            raise TypeError(f"Int: symmetric is True or False, not {self.symmetric!r}")

    @property
    def high(self) -> int:
        """The largest number."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def low(self) -> int:
        """The smallest number."""
        return -self.high if self.symmetric else -self.high - 1

    @property
    def dtype(self) -> np.dtype[np.int8]:
        """That of the numbers when they are unpacked."""
        return np.dtype(np.int8)

    def __str__(self) -> str:
        return f"int{self.bits}"

    def round(self, steps: jax.Array, zero: jax.Array | None = None) -> jax.Array:
        """`clip(round(steps) + zero, low, high)`, halves to even.

        Args:
            steps: float32, what is to be rounded, divided by the scale.
            zero: integers in float32, the zero points; None if symmetric.

        Returns:
            Integers in float32, of the shape of `steps`.
        """
        return jnp.clip(
            self._integers(steps, zero), np.float32(self.low), np.float32(self.high)
        )

    def covers(self, steps: jax.Array, zero: jax.Array | None = None) -> jax.Array:
        """Where `round` would give the same without clipping; a bool an element."""
        integers = self._integers(steps, zero)
        return (integers >= np.float32(self.low)) & (integers <= np.float32(self.high))

    @staticmethod
    def _integers(steps: jax.Array, zero: jax.Array | None) -> jax.Array:
        whole = jnp.round(steps)
        return whole if zero is None else whole + zero


@dataclasses.dataclass(frozen=True)
class Float8:
    """Numbers of float8_e4m3fn, in `[-448, 448]`.

    For devices that multiply these, and for weights of very different sizes that share
    a scale. There is no zero point, no infinity and, here, no zero below 0.

    References:
        Micikevicius et al. 2022, "FP8 Formats for Deep Learning".
    """

    bits: ClassVar[int] = 8
    symmetric: ClassVar[bool] = True
    low: ClassVar[int] = -448
    high: ClassVar[int] = 448
    dtype: ClassVar[np.dtype[np.generic]] = FLOAT8

    _LAST: ClassVar[int] = 464
    """The largest that rounds to `high`."""
    _NORMAL: ClassVar[float] = 2.0**-6
    """The smallest number with a full significand of 4 bits."""

    def __str__(self) -> str:
        return "float8"

    def round(self, steps: jax.Array, zero: jax.Array | None = None) -> jax.Array:
        """The nearest numbers, in float32; the arguments are those of `Int.round`."""
        del zero
        x = jnp.clip(steps, np.float32(self.low), np.float32(self.high))
        # A sum with 3 / 2 2^20 times the power of 2 below x has 3 bits of x after it.
        # The clipping stands between it and the product before: one rounding for both
        # would be another one.
        word = jax.lax.bitcast_convert_type(x, jnp.int32) & np.int32(_EXPONENT)
        power = jax.lax.bitcast_convert_type(word, jnp.float32)
        large = jnp.maximum(power, np.float32(self._NORMAL)) * np.float32(1.5 * 2**20)
        return (x + large) - large

    def covers(self, steps: jax.Array, zero: jax.Array | None = None) -> jax.Array:
        """Where `round` would give the same without clipping; a bool an element."""
        del zero
        return jnp.abs(steps) <= np.float32(self._LAST)


NumberFormat = Int | Float8
"""Any of the formats."""

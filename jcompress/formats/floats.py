"""Floats of 8, 6 and 4 bits as a number format."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats.base import NumberFormat
from jcompress.formats.packing import FLOAT8

_EXPONENT = 0x7F800000
"""The exponent's bits in a float32."""


@dataclasses.dataclass(frozen=True)
class _SmallFloat(NumberFormat):
    """A sign, an exponent and a significand, with subnormals and no infinity."""

    symmetric: ClassVar[bool] = True

    @property
    @abc.abstractmethod
    def significand_bits(self) -> int:
        """Bits after the leading one."""

    @property
    @abc.abstractmethod
    def least_normal(self) -> float:
        """The smallest number with a full significand."""

    @property
    def low(self) -> float:
        """The smallest number."""
        return -self.high

    def round(self, steps: jax.Array, zero: jax.Array | None = None) -> jax.Array:
        """The nearest numbers, in float32; of two as near the even one.

        There is no zero below 0. The arguments are those of `Int.round`.
        """
        del zero
        return self._nearest(steps, self.high)

    def covers(self, steps: jax.Array, zero: jax.Array | None = None) -> jax.Array:
        """Where `round` would give the same without clipping; a bool an element."""
        del zero
        most = np.float32(self.high)
        return jnp.abs(self._nearest(steps, 2 * self.high)) <= most

    def _nearest(self, steps: jax.Array, most: float) -> jax.Array:
        x = jnp.clip(steps, np.float32(-most), np.float32(most))
        # A sum with 3 / 2 2^(23 - s) times the power of 2 below x has s bits of x
        # after it. The clipping stands between it and the product before: one rounding
        # for both would be another one.
        word = jax.lax.bitcast_convert_type(x, jnp.int32) & np.int32(_EXPONENT)
        power = jax.lax.bitcast_convert_type(word, jnp.float32)
        far = np.float32(1.5 * 2 ** (23 - self.significand_bits))
        large = jnp.maximum(power, np.float32(self.least_normal)) * far
        return (x + large) - large


@dataclasses.dataclass(frozen=True)
class Float8(_SmallFloat):
    """8-bit floats, of 4 or 5 exponent bits (e4m3, e5m2).

    e4m3 reaches 448 and is for weights and activations; devices multiply these. e5m2
    reaches 57344 with a bit less of significand. There is no zero point, no infinity
    and, here, no zero below 0.

    Attributes:
        exponent_bits: 4 or 5.

    Raises:
        ValueError: `exponent_bits` is another number.

    References:
        Micikevicius et al. 2022, "FP8 Formats for Deep Learning".
    """

    exponent_bits: int = 4

    bits: ClassVar[int] = 8

    def __post_init__(self) -> None:
        _check_exponent(self, self.exponent_bits, (4, 5))

    def __str__(self) -> str:
        return "float8" if self.exponent_bits == 4 else "float8 e5m2"

    @property
    def significand_bits(self) -> int:
        """Bits after the leading one: 3 or 2."""
        return 7 - self.exponent_bits

    @property
    def least_normal(self) -> float:
        """The smallest number with a full significand."""
        return 2.0**-6 if self.exponent_bits == 4 else 2.0**-14

    @property
    def high(self) -> float:
        """The largest number: 448 or 57344."""
        return 448.0 if self.exponent_bits == 4 else 57344.0

    @property
    def dtype(self) -> np.dtype[Any]:
        """float8_e4m3fn or float8_e5m2."""
        kind: np.dtype[Any] = np.dtype(jnp.float8_e5m2)
        return FLOAT8 if self.exponent_bits == 4 else kind

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """That of the numbers."""
        return self.dtype

    def stored_size(self, size: int) -> int:
        """`size`: a number is a byte."""
        return size

    def pack(self, numbers: jax.Array) -> jax.Array:
        """The numbers as they are."""
        return numbers

    def unpack(self, stored: jax.Array, size: int) -> jax.Array:
        """The numbers as they are."""
        del size
        return stored


class _CodedFloat(_SmallFloat):
    """Stored as a sign, an exponent and a significand, the sign in the highest bit.

    Unpacked, the numbers count the smallest one: `unit` is its size.
    """

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the numbers when they are unpacked."""
        return np.dtype(np.int8)

    def pack(self, numbers: jax.Array) -> jax.Array:
        """Store numbers along the last axis."""
        size = jnp.abs(numbers).astype(jnp.float32)
        word = jax.lax.bitcast_convert_type(size, jnp.int32)
        # The bits after the leading one, behind the exponent above that of the
        # smallest normal number, which is 1.
        least = (127 + self.significand_bits - 1) << self.significand_bits
        above = (word >> np.int32(23 - self.significand_bits)) - np.int32(least)
        small = size < np.float32(2**self.significand_bits)
        code = jnp.where(small, size.astype(jnp.int32), above)
        sign = (numbers < 0).astype(jnp.int32) << np.int32(self.bits - 1)
        return super().pack((code | sign).astype(jnp.uint8))

    def unpack(self, stored: jax.Array, size: int) -> jax.Array:
        """The numbers that `pack` stored, int8."""
        return self._counts(stored, size).astype(jnp.int8)

    def _counts(self, stored: jax.Array, size: int) -> jax.Array:
        """How often each holds the smallest number, int16."""
        s = self.significand_bits
        signed = super().unpack(stored, size).astype(jnp.int16)
        code = signed & np.int16(2 ** (self.bits - 1) - 1)
        exponent, fraction = code >> np.int16(s), code & np.int16(2**s - 1)
        shift = jnp.maximum(exponent - np.int16(1), np.int16(0))
        normal = (fraction | np.int16(2**s)) << shift
        count = jnp.where(exponent > 0, normal, fraction)
        return jnp.where(signed < 0, -count, count)


@dataclasses.dataclass(frozen=True)
class Float6(_CodedFloat):
    """6-bit floats, of 2 or 3 exponent bits (e2m3 up to 7.5, e3m2 up to 28).

    Attributes:
        exponent_bits: 2 or 3.

    Raises:
        ValueError: `exponent_bits` is another number.

    References:
        Open Compute Project 2023, "OCP Microscaling Formats (MX) Specification",
        version 1.0, section 5.3.2.
    """

    exponent_bits: int = 2

    bits: ClassVar[int] = 6

    def __post_init__(self) -> None:
        _check_exponent(self, self.exponent_bits, (2, 3))

    def __str__(self) -> str:
        return f"float6 e{self.exponent_bits}m{self.significand_bits}"

    @property
    def significand_bits(self) -> int:
        """Bits after the leading one: 3 or 2."""
        return 5 - self.exponent_bits

    @property
    def least_normal(self) -> float:
        """The smallest number with a full significand."""
        return 1.0 if self.exponent_bits == 2 else 0.25

    @property
    def high(self) -> float:
        """The largest number: 7.5 or 28."""
        return 7.5 if self.exponent_bits == 2 else 28.0

    @property
    def unit(self) -> float:
        """What the unpacked number 1 stands for."""
        return 0.125 if self.exponent_bits == 2 else 1.0

    @property
    def dtype(self) -> np.dtype[Any]:
        """int8 for e2m3, which counts eighths; float8_e4m3fn for e3m2."""
        return np.dtype(np.int8) if self.exponent_bits == 2 else FLOAT8

    def pack(self, numbers: jax.Array) -> jax.Array:
        """Store numbers along the last axis."""
        if self.exponent_bits == 3:
            numbers = numbers.astype(jnp.float32) * np.float32(16)
        return super().pack(numbers)

    def unpack(self, stored: jax.Array, size: int) -> jax.Array:
        """The numbers that `pack` stored."""
        if self.exponent_bits == 2:
            return super().unpack(stored, size)
        counts = self._counts(stored, size).astype(jnp.float32)
        return (counts * np.float32(1 / 16)).astype(FLOAT8)


@dataclasses.dataclass(frozen=True)
class Float4(_CodedFloat):
    """4-bit floats (e2m1): 0, 0.5, 1, 1.5, 2, 3, 4, 6 and those below 0.

    With groups of 32 and scales that are powers of 2 this is MXFP4, with groups of 16
    and float8 scales NVFP4.

    References:
        Open Compute Project 2023, "OCP Microscaling Formats (MX) Specification",
        version 1.0, section 5.3.3.
    """

    bits: ClassVar[int] = 4
    high: ClassVar[float] = 6.0
    unit: ClassVar[float] = 0.5
    significand_bits: ClassVar[int] = 1
    least_normal: ClassVar[float] = 1.0

    def __str__(self) -> str:
        return "float4"


def _check_exponent(format: NumberFormat, given: object, fine: tuple[int, ...]) -> None:
    if isinstance(given, bool) or given not in fine:
        raise ValueError(
            f"{type(format).__name__}: exponent_bits is {fine[0]} or {fine[1]}, not "
            f"{given!r}"
        )

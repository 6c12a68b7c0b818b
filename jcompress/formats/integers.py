"""Integers as a number format: of 2 to 8 or 16 bits, ternary and binary ones."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats.base import NumberFormat


@dataclasses.dataclass(frozen=True)
class Int(NumberFormat):
    """Integers of a number of bits, stored without gaps.

    Symmetric: `[-(2^(bits-1) - 1), 2^(bits-1) - 1]`, where 0 stands for 0.
    Symmetric and full: `[-2^(bits-1), 2^(bits-1) - 1]`, one number more. The largest
    weight lies half a step beyond `2^(bits-1) - 1`, so that none errs by more than
    half a step. From 4 bits down this errs clearly less: 2 bits have 4 numbers, not 3.
    Asymmetric: `[-2^(bits-1), 2^(bits-1) - 1]` with an integer that stands for 0, its
    zero point (Jacob et al. 2018, "Quantization and Training of Neural Networks for
    Efficient Integer-Arithmetic-Only Inference", section 2.1).

    Attributes:
        bits: bits of a number, 2 to 8 or 16.
        symmetric: whether 0 stands for 0, so that no zero points are stored.
        full: whether a symmetric format has the number -2^(bits-1), too; for weights.

    Raises:
        ValueError: `bits` is not an int from 2 to 8, or 16; `full` of an asymmetric
            format, which has all numbers anyway.
        TypeError: `symmetric` or `full` is not a bool.
    """

    bits: int
    symmetric: bool = dataclasses.field(default=True, kw_only=True)
    full: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        bits = self.bits
        whole = isinstance(bits, int) and not isinstance(bits, bool)
        if not whole or not (2 <= bits <= 8 or bits == 16):
            raise ValueError(f"Int: bits is an int from 2 to 8, or 16, not {bits!r}")
        for name in ("symmetric", "full"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(
                    f"Int: {name} is True or False, not {getattr(self, name)!r}"
                )
        if self.full and not self.symmetric:
            raise ValueError(
                "Int: symmetric=False has all numbers of its bits; leave out full=True"
            )

    @property
    def high(self) -> int:
        """The largest number."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def low(self) -> int:
        """The smallest number."""
        return -self.high if self.symmetric and not self.full else -self.high - 1

    @property
    def reach(self) -> float:
        """The largest size in units of the scale that a symmetric range covers."""
        return self.high + 0.5 if self.full else self.high

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the numbers when they are unpacked: int8, or int16 for 16 bits."""
        return np.dtype(np.int16 if self.bits == 16 else np.int8)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """That of the stored array: uint8 for a stream of bits."""
        return np.dtype(np.uint8) if self.bits < 8 else self.dtype

    def stored_size(self, size: int) -> int:
        """The length of the last axis of the stored array, for `size` numbers."""
        return super().stored_size(size) if self.bits < 8 else size

    def pack(self, numbers: jax.Array) -> jax.Array:
        """Store numbers along the last axis; 8 and 16 bits stay as they are."""
        return super().pack(numbers) if self.bits < 8 else numbers

    def unpack(self, stored: jax.Array, size: int) -> jax.Array:
        """The numbers that `pack` stored."""
        return super().unpack(stored, size) if self.bits < 8 else stored

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
        """Where `round` would give the same without clipping; a bool an element.

        Of a full format all that its scale covers, too: where 7.5 becomes 7.
        """
        integers = self._integers(steps, zero)
        if self.full:
            # A little more: the largest weight is `reach` times the scale but for the
            # rounding of a quotient.
            most = np.float32(self.reach * (1 + 2.0**-20))
            return (integers >= np.float32(self.low)) & (steps <= most)
        return (integers >= np.float32(self.low)) & (integers <= np.float32(self.high))

    @staticmethod
    def _integers(steps: jax.Array, zero: jax.Array | None) -> jax.Array:
        whole = jnp.round(steps)
        return whole if zero is None else whole + zero


@dataclasses.dataclass(frozen=True)
class Ternary(NumberFormat):
    """-1, 0 and 1, five of which take a byte: 1.6 bits a number.

    A scale that covers the largest weight leaves most others 0; give it
    `range=MeanAbsolute()` or `LeastError()`.

    References:
        Ma et al. 2024, "The Era of 1-bit LLMs: All Large Language Models are in 1.58
        Bits".
    """

    bits: ClassVar[float] = 1.6
    symmetric: ClassVar[bool] = True
    low: ClassVar[int] = -1
    high: ClassVar[int] = 1
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.int8)

    _EACH: ClassVar[int] = 5
    """Numbers in a byte: 3^5 is 243."""

    def __str__(self) -> str:
        return "ternary"

    def round(self, steps: jax.Array, zero: jax.Array | None = None) -> jax.Array:
        """`clip(round(steps), -1, 1)`."""
        del zero
        return jnp.clip(jnp.round(steps), np.float32(-1), np.float32(1))

    def covers(self, steps: jax.Array, zero: jax.Array | None = None) -> jax.Array:
        """Where `round` would give the same without clipping."""
        del zero
        return jnp.abs(jnp.round(steps)) <= np.float32(1)

    def stored_size(self, size: int) -> int:
        """Bytes for `size` numbers: a fifth, rounded up."""
        return -(-size // self._EACH)

    @property
    def is_stream(self) -> bool:
        """False: a number is a digit of base 3."""
        return False

    def pack(self, numbers: jax.Array) -> jax.Array:
        """Five numbers a byte, the first as the lowest digit."""
        short = -numbers.shape[-1] % self._EACH
        pad = [(0, 0)] * (numbers.ndim - 1) + [(0, short)]
        digits = (jnp.pad(numbers, pad) + np.int8(1)).astype(jnp.uint8)
        count = digits.shape[-1] // self._EACH
        apart = digits.reshape(*digits.shape[:-1], count, self._EACH)
        powers = self._powers(numbers.ndim)
        return jnp.sum(apart * powers, axis=-1, dtype=jnp.uint8)

    def unpack(self, stored: jax.Array, size: int) -> jax.Array:
        """The numbers that `pack` stored, int8."""
        digits = (stored[..., None] // self._powers(stored.ndim)) % np.uint8(3)
        numbers = digits.astype(jnp.int8) - np.int8(1)
        whole = stored.shape[-1] * self._EACH
        return numbers.reshape(*stored.shape[:-1], whole)[..., :size]

    def _powers(self, rank: int) -> np.ndarray[Any, Any]:
        powers = 3 ** np.arange(self._EACH)
        return powers.astype(np.uint8).reshape((1,) * rank + (-1,))


@dataclasses.dataclass(frozen=True)
class Binary(NumberFormat):
    """-1 and 1, one bit a number; the gradient passes where a weight is within them.

    The scale of least squared error is the mean size of the weights,
    `range=MeanAbsolute()`.

    References:
        Rastegari et al. 2016, "XNOR-Net: ImageNet Classification Using Binary
        Convolutional Neural Networks", section 3.1.
    """

    bits: ClassVar[int] = 1
    symmetric: ClassVar[bool] = True
    low: ClassVar[int] = -1
    high: ClassVar[int] = 1
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.int8)

    def __str__(self) -> str:
        return "binary"

    def round(self, steps: jax.Array, zero: jax.Array | None = None) -> jax.Array:
        """The sign; 1 of 0."""
        del zero
        return jnp.where(steps < 0, np.float32(-1), np.float32(1))

    def covers(self, steps: jax.Array, zero: jax.Array | None = None) -> jax.Array:
        """Where `steps` is within [-1, 1]."""
        del zero
        return jnp.abs(steps) <= np.float32(1)

    def pack(self, numbers: jax.Array) -> jax.Array:
        """One bit a number: 1 for 1."""
        return super().pack((numbers > 0).astype(jnp.uint8))

    def unpack(self, stored: jax.Array, size: int) -> jax.Array:
        """The numbers that `pack` stored, int8."""
        # Unpacked, a bit is 0 or -1.
        return np.int8(-1) - np.int8(2) * super().unpack(stored, size)

"""What a number format is: which numbers there are, and how they are stored."""

import abc
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jcompress.formats.packing import pack_codes, stream_size, unpack_codes


class NumberFormat(abc.ABC):
    """Which numbers a quantized array is made of, before a scale stretches them.

    A number of the array stands for `unit * (number - zero) * scale`. `Weights` and
    `Activation` combine a format with what shares a scale. To add one, subclass this
    as a frozen dataclass and register it with `jcompress.checkpoint.register`.
    """

    if TYPE_CHECKING:
        # Fields, constants or properties of the subclasses: there is nothing to
        # inherit when the program runs, which a dataclass would take for a default.

        @property
        def bits(self) -> Any:
            """Bits of a stored number."""

        @property
        def symmetric(self) -> bool:
            """Whether there are no zero points."""

        @property
        def low(self) -> float:
            """The smallest number, in units of the scale."""

        @property
        def high(self) -> float:
            """The largest number, in units of the scale."""

        @property
        def dtype(self) -> np.dtype[Any]:
            """That of the numbers when they are unpacked."""

    @property
    def reach(self) -> float:
        """The largest size that the scale of a symmetric range stretches to cover."""
        return self.high

    @property
    def unit(self) -> float:
        """What the unpacked number 1 stands for."""
        return 1.0

    @abc.abstractmethod
    def round(self, steps: jax.Array, zero: jax.Array | None = None) -> jax.Array:
        """The nearest numbers.

        Args:
            steps: float32, what is to be rounded, divided by the scale.
            zero: integers in float32, the zero points; None if symmetric.

        Returns:
            Float32 of the shape of `steps`, in units of the scale.
        """

    @abc.abstractmethod
    def covers(self, steps: jax.Array, zero: jax.Array | None = None) -> jax.Array:
        """Where `round` would give the same without clipping; a bool an element."""

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """That of the stored array."""
        return np.dtype(np.uint8)

    def stored_size(self, size: int) -> int:
        """The length of the last axis of the stored array, for `size` numbers."""
        return stream_size(size, self.bits)

    @property
    def is_stream(self) -> bool:
        """Whether number k is bits `bits k` to `bits (k + 1)` of the stored bytes."""
        return True

    def pack(self, numbers: jax.Array) -> jax.Array:
        """Store numbers along the last axis.

        Args:
            numbers: [..., K] of `dtype`.

        Returns:
            [..., `stored_size(K)`] of `stored_dtype`.
        """
        return pack_codes(numbers, self.bits)

    def unpack(self, stored: jax.Array, size: int) -> jax.Array:
        """The numbers [..., size] of `dtype` that `pack` stored."""
        return unpack_codes(stored, size, self.bits)

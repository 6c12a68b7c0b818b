"""How scales are stored: as floats, as powers of 2, or quantized themselves."""

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats.base import NumberFormat
from jcompress.formats.floats import Float8

_TINY = np.finfo(np.float32).tiny


class ScaleFormat(abc.ABC):
    """How the scales of a weight are stored; numbers are rounded by what is stored.

    Attributes:
        has_factor: whether all scales of a matrix share one more factor.
    """

    has_factor: ClassVar[bool] = False

    if TYPE_CHECKING:

        @property
        def dtype(self) -> np.dtype[Any]:
            """That of the stored scales."""

    @abc.abstractmethod
    def fit(self, width: jax.Array, span: float) -> jax.Array:
        """The scales of ranges, among those that can be stored.

        Args:
            width: float32 [*S, R, G], the width of each range: the largest size of a
                symmetric one, else the largest number less the smallest.
            span: the same width of the number format.

        Returns:
            Float32 of that shape: about `width / span`, 1 where that cannot be
            inverted; not finite where the width is not.
        """

    @abc.abstractmethod
    def store(self, scales: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Store scales that `fit` gave, exactly.

        Args:
            scales: float32 [*S, R, G].

        Returns:
            [*S, R, G] of `dtype`, and a float32 factor [*S, 1, 1] if `has_factor`.
        """

    @abc.abstractmethod
    def read(self, stored: jax.Array, factor: jax.Array | None) -> jax.Array:
        """The float32 scales that are stored."""


def _invertible(scales: jax.Array) -> jax.Array:
    return jnp.where(scales < _TINY, np.float32(1), scales)


@dataclasses.dataclass(frozen=True)
class FloatScales(ScaleFormat):
    """Scales are float32 or bfloat16.

    Attributes:
        bits: 32 or 16.

    Raises:
        ValueError: `bits` is another number.
    """

    bits: int = 32

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or self.bits not in (16, 32):
            raise ValueError(f"FloatScales: bits is 16 or 32, not {self.bits!r}")

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or bfloat16."""
        return np.dtype(np.float32 if self.bits == 32 else jnp.bfloat16)

    def fit(self, width: jax.Array, span: float) -> jax.Array:
        """`width / span`, rounded to the dtype."""
        scales = width * np.float32(1 / span)
        if self.bits == 16:
            scales = jax.lax.reduce_precision(scales, 8, 7)
        return _invertible(scales)

    def store(self, scales: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The scales as they are."""
        return scales.astype(self.dtype), None

    def read(self, stored: jax.Array, factor: jax.Array | None) -> jax.Array:
        """The float32 scales that are stored."""
        del factor
        return stored if self.bits == 32 else stored.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class PowerOfTwoScales(ScaleFormat):
    """Scales are powers of 2, of which a byte holds the exponent plus 127 (E8M0).

    The largest weight of a range is clipped by half a step at most. (The example in
    section 6.3 of the specification clips it by up to a quarter of its size.)

    References:
        Open Compute Project 2023, "OCP Microscaling Formats (MX) Specification",
        version 1.0, section 5.4.1.
    """

    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.uint8)

    def fit(self, width: jax.Array, span: float) -> jax.Array:
        """The least `2^e` with `width / 2^e` up to the middle of span and what follows.

        What follows the largest number of a format counts as the next power of 2.
        """
        power = 2.0 ** np.floor(np.log2(span))
        # As a float32 the width is 1 to 2 times a power of 2, and the middle, too.
        middle = np.asarray((span + 2 * power) / 2, np.float32)
        word = jax.lax.bitcast_convert_type(width, jnp.int32) - middle.view(np.int32)
        exponent = np.int32(127) + ((word + np.int32(2**23 - 1)) >> np.int32(23))
        # Neither the scale nor its inverse may leave the normal numbers.
        exponent = jnp.clip(exponent, np.int32(1), np.int32(253))
        scales = jax.lax.bitcast_convert_type(exponent << np.int32(23), jnp.float32)
        scales = jnp.where(jnp.isfinite(width), scales, np.float32(np.nan))
        return jnp.where(width < _TINY, np.float32(1), scales)

    def store(self, scales: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The exponents plus 127, uint8; 255 for what is not finite."""
        word = jax.lax.bitcast_convert_type(scales, jnp.int32) >> np.int32(23)
        exponent = (word & np.int32(255)).astype(jnp.uint8)
        return jnp.where(jnp.isfinite(scales), exponent, np.uint8(255)), None

    def read(self, stored: jax.Array, factor: jax.Array | None) -> jax.Array:
        """The float32 scales that are stored."""
        del factor
        word = stored.astype(jnp.int32) << np.int32(23)
        scales = jax.lax.bitcast_convert_type(word, jnp.float32)
        return jnp.where(stored == np.uint8(255), np.float32(np.nan), scales)


@dataclasses.dataclass(frozen=True)
class QuantizedScales(ScaleFormat):
    """Scales are numbers of a symmetric format, times one power of 2 for a matrix.

    With `Float8()` these are the scales of NVFP4, with `Int(8)` a kind of QLoRA's
    double quantization.

    Attributes:
        format: which numbers, `Float8()` or `Int(8)`.

    Raises:
        ValueError: the format is another one.

    References:
        Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section
        3; NVIDIA 2025, "Pretraining Large Language Models with NVFP4", section 2.
    """

    format: NumberFormat = Float8()

    has_factor: ClassVar[bool] = True

    def __post_init__(self) -> None:
        one_byte = isinstance(self.format, NumberFormat) and self.format.bits == 8
        if not one_byte or not self.format.symmetric:
            raise ValueError(
                f"QuantizedScales: format is Float8() or Int(8), not {self.format!r}"
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the format's numbers."""
        return np.dtype(self.format.dtype)

    def fit(self, width: jax.Array, span: float) -> jax.Array:
        """`width / span`, rounded to the numbers; none to 0, which holds no weights."""
        scales = width * np.float32(1 / span)
        factor = self._factor(scales)
        steps = jnp.maximum(scales * (np.float32(1) / factor), self._least)
        return self.format.round(steps) * factor

    def store(self, scales: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The numbers and their factor."""
        factor = self._factor(scales)
        return (scales * (np.float32(1) / factor)).astype(self.dtype), factor

    def read(self, stored: jax.Array, factor: jax.Array | None) -> jax.Array:
        """The float32 scales that are stored."""
        assert factor is not None
        return stored.astype(jnp.float32) * factor

    @property
    def _least(self) -> np.float32:
        """The smallest number above 0."""
        return np.float32(1) if self.dtype == np.int8 else np.float32(2.0**-9)

    def _factor(self, scales: jax.Array) -> jax.Array:
        """The least power of 2 that brings all scales of a matrix among the numbers."""
        most = jnp.max(scales, axis=(-2, -1), keepdims=True, initial=0)
        ratio = most * np.float32(1 / self.format.high)
        word = jax.lax.bitcast_convert_type(ratio, jnp.int32)
        # What is above a power of 2 goes to the next.
        exponent = (word + np.int32(2**23 - 1)) >> np.int32(23)
        exponent = jnp.clip(exponent, np.int32(1), np.int32(253))
        power = jax.lax.bitcast_convert_type(exponent << np.int32(23), jnp.float32)
        power = jnp.where(jnp.isfinite(most), power, np.float32(np.nan))
        return jnp.where(most < _TINY, np.float32(1), power)

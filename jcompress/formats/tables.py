"""Number formats that are a table of numbers: normal floats."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from jcompress.formats.base import NumberFormat

Host = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class NormalFloat4(NumberFormat):
    """16 numbers that normally distributed weights are equally often nearest to (nf4).

    They are quantiles of the normal distribution, eight above 0 and seven below, and 0
    itself, stretched to [-1, 1].

    References:
        Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section
        3 and appendix E.
    """

    bits: ClassVar[int] = 4
    symmetric: ClassVar[bool] = True
    low: ClassVar[int] = -1
    high: ClassVar[int] = 1
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)

    def __str__(self) -> str:
        return "nf4"

    def round(self, steps: jax.Array, zero: jax.Array | None = None) -> jax.Array:
        """The nearest numbers; the arguments are those of `Int.round`."""
        del zero
        levels, middles = _normal_levels()
        found = jnp.full_like(steps, levels[0])
        for level, middle in zip(levels[1:], middles, strict=True):
            found = jnp.where(steps > middle, level, found)
        return found

    def covers(self, steps: jax.Array, zero: jax.Array | None = None) -> jax.Array:
        """Where `steps` is within [-1, 1]."""
        del zero
        return jnp.abs(steps) <= np.float32(1)

    def pack(self, numbers: jax.Array) -> jax.Array:
        """Store the numbers' places in the table, along the last axis."""
        _, middles = _normal_levels()
        place = jnp.zeros(numbers.shape, jnp.uint8)
        for middle in middles:
            place = place + (numbers > middle).astype(jnp.uint8)
        return super().pack(place)

    def unpack(self, stored: jax.Array, size: int) -> jax.Array:
        """The numbers that `pack` stored, float32."""
        levels, _ = _normal_levels()
        place = super().unpack(stored, size).astype(jnp.int32) & np.int32(15)
        return jnp.asarray(levels).at[place].get(mode="promise_in_bounds")


@functools.cache
def _normal_levels() -> tuple[Host, Host]:
    """The numbers in order, and the middle between each and the next; float32."""
    # Half of the probability beyond the outermost number: the mean of 1 - 1 / 30 and
    # 1 - 1 / 32, which 15 and 16 numbers would leave.
    last = 1 - (1 / 30 + 1 / 32) / 2
    above = special.ndtri(np.linspace(last, 0.5, 9)[:-1])
    below = -special.ndtri(np.linspace(last, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([above, below, np.zeros(1)])) / above[0]
    middles = (levels[1:] + levels[:-1]) / 2
    return levels.astype(np.float32), middles.astype(np.float32)

"""The numbers of a format on both sides of what is to be rounded."""

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import NumberFormat

_HALVINGS = 30
"""Enough to tell half the smallest gap of a format from its whole range."""


def neighbours(
    steps: jax.Array, zero: jax.Array | None, format: NumberFormat
) -> tuple[jax.Array, jax.Array]:
    """The largest number not above, and the smallest not below; for any format.

    Args:
        steps: float32, what is to be rounded, divided by the scale.
        zero: integers in float32, the zero points; None if symmetric.
        format: which numbers there are.

    Returns:
        Numbers of the format in float32, of the shape of `steps`. Above the largest
        and below the smallest number both are that one; what is a number already has
        the next larger one beside it.
    """
    offset = jnp.zeros_like(steps) if zero is None else zero
    near = format.round(steps, zero)

    def beside(way: jax.Array) -> jax.Array:
        """The next number to `near`, up or down: where rounding begins to give it."""

        def halve(
            _: jax.Array, between: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            short, far = between
            middle = (short + far) * np.float32(0.5)
            moved = format.round(near - offset + way * middle, zero) != near
            return jnp.where(moved, short, middle), jnp.where(moved, middle, far)

        whole = jnp.full(steps.shape, np.float32(format.high - format.low))
        start = (jnp.zeros_like(whole), whole)
        _, far = jax.lax.fori_loop(0, _HALVINGS, halve, start)
        return format.round(near - offset + way * far, zero)

    above = near > steps + offset
    other = beside(jnp.where(above, np.float32(-1), np.float32(1)))
    beyond = (near == format.low) & above | (near == format.high) & ~above
    other = jnp.where(beyond, near, other)
    return jnp.minimum(near, other), jnp.maximum(near, other)

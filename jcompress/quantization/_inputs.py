"""The inputs of products: their ranges, and the handler that quantizes them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jcompress._handlers import Bind
from jcompress._jaxprs import aval_shape
from jcompress._values import Use
from jcompress.quantization.arithmetic import (
    Range,
    fake_quantize,
    range_of,
    scale_and_zero,
)
from jcompress.quantization.formats import Activation, MovingAverage, PerRow


def empty_range(shape: tuple[int, ...]) -> Range:
    """The range of no data."""
    infinity = jnp.full(shape, jnp.inf, jnp.float32)
    return Range(infinity, -infinity)


def moving_average(old: Range, new: Range, decay: float) -> Range:
    """`decay * old + (1 - decay) * new`; a range of no data counts for nothing."""

    def one(past: jax.Array, now: jax.Array) -> jax.Array:
        mixed = decay * past + (1 - decay) * now
        mixed = jnp.where(jnp.isfinite(past), mixed, now)
        return jnp.where(jnp.isfinite(now), mixed, past)

    return Range(one(old.low, new.low), one(old.high, new.high))


class RangeStatistic:
    """Ranges of several executions of a site become the range that holds them all."""

    def empty(self, like: Any) -> Any:
        """The range of no data."""
        return empty_range(like.low.shape)

    def join(self, a: Any, b: Any) -> Any:
        """The range that holds both."""
        return Range(jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high))

    def reduce(self, stacked: Any) -> Any:
        """The range that holds all along the leading axis."""
        return Range(jnp.min(stacked.low, axis=0), jnp.max(stacked.high, axis=0))

    def across(self, value: Any, axis_names: tuple[str, ...]) -> Any:
        """The range that holds those of all devices."""
        return Range(
            jax.lax.pmin(value.low, axis_names), jax.lax.pmax(value.high, axis_names)
        )


def input_scale(
    x: jax.Array, use: Use, activation: Activation, stored: Range | None
) -> tuple[jax.Array, jax.Array | None]:
    """Scale and zero point of a product's input, broadcasting against it.

    Args:
        x: the input.
        use: the product.
        activation: how the input is quantized.
        stored: the range to use; None, or a range without data, takes that of `x`.
    """
    given = jax.lax.stop_gradient(x)
    axes = None
    if isinstance(activation.granularity, PerRow):
        axes = contracted(use)
    now = range_of(given, axes)
    if stored is not None:
        known = jnp.isfinite(stored.low) & jnp.isfinite(stored.high)
        now = Range(
            jnp.where(known, stored.low, now.low),
            jnp.where(known, stored.high, now.high),
        )
    return scale_and_zero(
        now,
        bits=activation.bits,
        symmetric=activation.symmetric,
        floating=activation.floating,
    )


def contracted(use: Use) -> tuple[int, ...]:
    """The axes of a product's data that it sums over; of a convolution, all but one."""
    assert use.data is not None
    eqn = use.eqn
    match eqn.primitive.name:
        case "dot_general":
            return tuple(eqn.params["dimension_numbers"][0][use.data])
        case "conv_general_dilated":
            batch = eqn.params["dimension_numbers"].lhs_spec[0]
            rank = len(aval_shape(eqn.invars[0]))
            return tuple(axis for axis in range(rank) if axis != batch)
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    return tuple(numbers.dot_dimension_numbers[0][use.data])


@dataclasses.dataclass(frozen=True)
class QuantizeInput:
    """Handler of a product whose input is quantized, or only looked at."""

    activation: Activation
    simulate: bool

    def __call__(
        self, use: Use, inputs: list[Any], bind: Bind, read: Any
    ) -> tuple[list[Any], Any]:
        assert use.data is not None
        inputs = list(inputs)
        x = inputs[use.data]
        seen = None
        if isinstance(self.activation.range, MovingAverage):
            seen = range_of(jax.lax.stop_gradient(x), None)
            seen = Range(seen.low.reshape(()), seen.high.reshape(()))
        if self.simulate:
            scale, zero = input_scale(x, use, self.activation, read)
            inputs[use.data] = fake_quantize(
                x,
                scale,
                zero,
                bits=self.activation.bits,
                symmetric=self.activation.symmetric,
                floating=self.activation.floating,
            )
        return bind(inputs), seen

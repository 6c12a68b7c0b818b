"""The inputs of products: their ranges, and the handler that quantizes them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.tensors.ranges import Range, input_scale, range_of
from jcompress.tensors.rounding import fake_quantize
from jcompress.tensors.specs import Activation, MovingAverage
from jcompress.tracing.handlers import Bind
from jcompress.tracing.products import contracted
from jcompress.tracing.values import Use


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
            scale, zero = input_scale(x, contracted(use), self.activation, read)
            inputs[use.data] = fake_quantize(x, scale, zero, self.activation.format)
        return bind(inputs), seen

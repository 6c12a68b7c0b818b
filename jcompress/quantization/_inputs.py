"""The inputs of products: their ranges, and the handler that quantizes them."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcompress.quantization._within import fake_quantize_within
from jcompress.quantization.learned import Learned, fake_quantize_learned
from jcompress.tensors.ranges import Range, input_scale, range_of
from jcompress.tensors.rounding import fake_quantize
from jcompress.tensors.specs import Activation, Dynamic, MovingAverage, Static
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


def whole_range(x: jax.Array) -> Range:
    """The range of all numbers, two scalars without a gradient."""
    low, high = range_of(jax.lax.stop_gradient(x), None)
    return Range(low.reshape(()), high.reshape(()))


class InputRead(NamedTuple):
    """What the handler of an input is given when it runs.

    Attributes:
        range: the stored range, for `MovingAverage` and `Static`.
        learned: the learned scale, for `Lsq` and `Pact`.
        active: bool, whether the input is quantized now; None for yes.
    """

    range: Range | None = None
    learned: Learned | None = None
    active: jax.Array | None = None


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
        if self.simulate and self.activation.shared:
            # It is rounded, and was looked at before that.
            return bind(inputs), None
        seen = None
        if isinstance(self.activation.range, MovingAverage | Static):
            seen = whole_range(x)
        if self.simulate:
            inputs[use.data] = self.rounded(x, use, read)
        return bind(inputs), seen

    def rounded(self, x: jax.Array, use: Use, read: InputRead) -> jax.Array:
        """The data of a use as the product meets it."""
        turned = use.eqn.primitive.name == "conv_general_dilated"
        faked = self._faked(x, contracted(use), read, turned)
        return faked if read.active is None else jnp.where(read.active, faked, x)

    def _faked(
        self, x: jax.Array, summed: tuple[int, ...], read: InputRead, turned: bool
    ) -> jax.Array:
        format = self.activation.format
        if read.learned is not None:
            features = math.prod(x.shape[axis] for axis in summed)
            return fake_quantize_learned(
                x, read.learned, format, features, turned=turned
            )
        scale, zero = input_scale(x, summed, self.activation, read.range)
        if zero is None and isinstance(self.activation.range, Dynamic):
            return fake_quantize_within(x, scale, format, turned)
        return fake_quantize(x, scale, zero, format)

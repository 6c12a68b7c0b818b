"""What follows a product of a compressed leaf, for the product's own call."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcompress.execution.convolutions import Windowed
from jcompress.formats import Int
from jcompress.fusion import AfterProduct, Graph
from jcompress.kernels import Elementwise
from jcompress.tensors.rounding import dequantize_values, quantize_values
from jcompress.tracing.deferred import Deferred
from jcompress.tracing.interpreter import bind
from jcompress.tracing.products import Product
from jcompress.tracing.values import Location, Use


class Stored(NamedTuple):
    """How a result is stored as integers: as the next product takes its data.

    Attributes:
        bits: of an integer.
        scale: float32, one number.
        zero: an integer in float32, one number, or None for a symmetric range.
    """

    bits: int
    scale: jax.Array
    zero: jax.Array | None

    @property
    def format(self) -> Int:
        """Of the integers."""
        return Int(self.bits, symmetric=self.zero is None)

    def rounded(self, x: jax.Array) -> "Rounded":
        """Floats as integers."""
        integers = quantize_values(x, self.scale, self.zero, self.format)
        return Rounded(integers.astype(jnp.int8), self)


class Rounded(NamedTuple):
    """A value that is there as integers.

    Attributes:
        integers: int8.
        stored: what they stand for.
    """

    integers: jax.Array
    stored: Stored

    def dense(self) -> jax.Array:
        """As float32."""
        return dequantize_values(self.integers, self.stored.scale, self.stored.zero)


@dataclasses.dataclass
class Finish:
    """What follows one product, with its arrays as the traced program has them.

    Attributes:
        pattern: what was found.
        bias: of the axes of the product's result, of size 1 or repeated along rows.
        addend: of the shape of the result, perhaps rounded; of a convolution.
        factor: of the shape of the result.
        residual: of the shape of the result.
        stored: how the result is stored; None for floats. Of a convolution.
        done: whether the product's call does it.
    """

    pattern: AfterProduct
    bias: jax.Array | None = None
    addend: jax.Array | Rounded | None = None
    factor: jax.Array | None = None
    residual: jax.Array | None = None
    stored: Stored | None = None
    done: bool = False

    @classmethod
    def of(cls, pattern: AfterProduct, values: list[Any]) -> "Finish":
        """The pattern with the values of `pattern.given`."""
        rest = iter(values)
        places = (pattern.bias, pattern.addend, pattern.factor, pattern.residual)
        bias, addend, factor, residual = (
            None if place is None else next(rest) for place in places
        )
        return cls(pattern, bias, addend, factor, residual)

    @property
    def said(self) -> str:
        """What is done, in words."""
        activation = self.pattern.activation
        parts = [
            "bias" if self.bias is not None else "",
            "sum" if self.addend is not None else "",
            activation.value if activation is not None else "",
            "factor" if self.factor is not None else "",
            "residual" if self.residual is not None else "",
            "" if self.stored is None else f"its result in {self.stored.bits} bits",
        ]
        return "with " + ", ".join(part for part in parts if part)

    def of_images(self, plan: Windowed) -> dict[str, Any]:
        """The keyword arguments of a convolution that does it."""
        given: dict[str, Any] = {}
        if self.bias is not None:
            features = plan.from_images.index(len(plan.from_images) - 1)
            ends = [n if d == features else 1 for d, n in enumerate(self.bias.shape)]
            one = jax.lax.slice(self.bias, (0,) * self.bias.ndim, ends).reshape(-1)
            given["bias"] = jnp.broadcast_to(one, plan.features).astype(jnp.float32)
        if self.pattern.activation is not None:
            given["activation"] = self.pattern.activation
        if isinstance(self.addend, Rounded):
            _, scale, zero = self.addend.stored
            given["addend"] = jnp.transpose(self.addend.integers, plan.placed)
            given["addend_scale"] = scale.reshape(())
            given["addend_zero"] = None if zero is None else zero.reshape(())
        elif self.addend is not None:
            given["addend"] = jnp.transpose(self.addend, plan.placed)
        if self.residual is not None:
            given["residual"] = jnp.transpose(self.residual, plan.placed)
        if self.stored is not None:
            given["y_bits"], scale, zero = self.stored
            given["y_scale"] = scale.reshape(())
            given["y_zero"] = None if zero is None else zero.reshape(())
        return given

    def arguments(self, plan: Product) -> dict[str, Any]:
        """The keyword arguments of a product that does it."""
        given: dict[str, Any] = {}
        if self.bias is not None:
            given["bias"] = self._bias(plan).astype(jnp.float32)
        if self.pattern.activation is not None:
            given["then"] = Elementwise(activation=self.pattern.activation)
        for name in ("factor", "residual"):
            array = getattr(self, name)
            if array is not None:
                given[name] = plan.output_rows(array)
        return given

    def _bias(self, plan: Product) -> jax.Array:
        assert self.bias is not None
        wide = len(plan.out_sizes)
        rows = self.bias.ndim - wide
        start = 0 if plan.weight_first else rows
        outputs = range(start, start + wide)
        ends = [n if d in outputs else 1 for d, n in enumerate(self.bias.shape)]
        one = jax.lax.slice(self.bias, (0,) * self.bias.ndim, ends)
        sizes = iter(plan.out_sizes)
        whole = [next(sizes) if d in outputs else 1 for d in range(self.bias.ndim)]
        return plan.output_rows(jnp.broadcast_to(one, whole)).reshape(-1)


@dataclasses.dataclass(frozen=True)
class Finished:
    """A product with what follows it.

    Attributes:
        graph: the program.
        use: the product.
        pattern: what follows.
        handler: evaluates the product.
    """

    graph: Graph
    use: Use
    pattern: AfterProduct
    handler: Any

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What it takes: the inputs of the product, then what follows takes."""
        return (*self.use.eqn.invars, *self.pattern.given)

    def finish(self, values: Sequence[Any]) -> Finish:
        """What follows, with its values."""
        given = values[len(self.use.eqn.invars) :]
        dense = [v.dense() if isinstance(v, Deferred) else v for v in given]
        return Finish.of(self.pattern, dense)

    def run(
        self,
        values: Sequence[Any],
        reads: Mapping[Location, Any],
        *,
        stored: Stored | None = None,
        rounded: bool = False,
    ) -> Any:
        """The result.

        Args:
            values: of `inputs`.
            reads: what handlers read, by location.
            stored: how the result is stored; None for floats.
            rounded: whether the data comes as integers.
        """
        eqn, pattern, finish = self.use.eqn, self.pattern, self.finish(values)
        finish.stored = stored
        inputs = list(values[: len(eqn.invars)])
        site = self.handler
        if pattern.equations or stored is not None:
            site = dataclasses.replace(site, after=finish)
        if rounded:
            site = dataclasses.replace(site, rounded=True)
        product = functools.partial(bind, eqn)
        outs, _ = site(self.use, inputs, product, reads.get(self.use.location))
        if finish.done or not pattern.equations:
            return outs[0]
        rest = self.graph.original(
            pattern.equations, (*eqn.outvars, *pattern.given), (pattern.result,)
        )
        given = values[len(eqn.invars) :]
        dense = [v.dense() if isinstance(v, Deferred | Rounded) else v for v in given]
        return rest(*outs, *dense)[0]

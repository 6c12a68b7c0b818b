"""What follows a product of a compressed leaf, done in the product's own call."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.execution.convolutions import Windowed
from jcompress.fusion import AfterProduct, Graph, follow_product
from jcompress.fusion.find import programs
from jcompress.kernels import Elementwise, shared_input_matmul
from jcompress.kernels.shared_input_matmul import Part
from jcompress.tracing.deferred import Deferred
from jcompress.tracing.interpreter import bind
from jcompress.tracing.jaxprs import aval_shape, split
from jcompress.tracing.products import Product
from jcompress.tracing.replacing import Replacement
from jcompress.tracing.trace import Traced
from jcompress.tracing.values import Location, Use


@dataclasses.dataclass
class Finish:
    """What follows one product, with its arrays as the traced program has them.

    Attributes:
        pattern: what was found.
        bias: of the axes of the product's result, of size 1 or repeated along rows.
        addend: of the shape of the result; of a convolution.
        factor: of the shape of the result.
        residual: of the shape of the result.
        done: whether the product's call does it.
    """

    pattern: AfterProduct
    bias: jax.Array | None = None
    addend: jax.Array | None = None
    factor: jax.Array | None = None
    residual: jax.Array | None = None
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
        for name in ("addend", "residual"):
            array = getattr(self, name)
            if array is not None:
                given[name] = jnp.transpose(array, plan.placed)
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


def finished_products(
    traced: Traced, handlers: Mapping[Location, Any]
) -> Iterator[tuple[Location, frozenset[int], Replacement]]:
    """The products of handlers with what follows them, those of one input together.

    Args:
        traced: the function, with calls written out.
        handlers: by location; each is copied with an `after` of its own.

    Yields:
        The location of the program, the equations behind the products, and what
        evaluates all.
    """
    places: dict[Location, list[Location]] = {}
    for here in handlers:
        places.setdefault(here[:-1], []).append(here)
    for at, body in programs(traced.body):
        if at not in places:
            continue
        graph = Graph.of(body)
        taken: set[int] = set()
        for together in _of_one_input(traced, sorted(places[at])):
            patterns = []
            for use, axes in together:
                alone = len(together) == 1
                number = use.location[-1]
                pattern = follow_product(graph, number, axes, alone=alone)
                # What products of one call make, none of them can take; and where two
                # products meet in one equation, the first one takes it.
                own = [other.eqn.outvars[0] for other, _ in together]
                circular = len(together) > 1 and any(
                    one in graph.depending(out) for out in own for one in pattern.given
                )
                if circular or taken.intersection(pattern.equations):
                    pattern = pattern.without(use.eqn.outvars[0])
                taken.update(pattern.equations)
                patterns.append(pattern)
            behind = frozenset(n for one in patterns for n in one.equations)
            if len(together) == 1 and not behind:
                continue
            pairs = zip(together, patterns, strict=True)
            products = [
                Finished(graph, use, pattern, handlers[use.location])
                for (use, _), pattern in pairs
            ]
            yield at, behind, _replacement(products)


Outputs = tuple[Use, frozenset[int]]
"""A product, and the axes of its result that are the weight's."""


def _of_one_input(
    traced: Traced, places: Sequence[Location]
) -> Iterator[Sequence[Outputs]]:
    """The products at some places, those together that sum over the same data."""
    found: dict[Any, list[Outputs]] = {}
    for here in places:
        use = traced.uses[here]
        axes = _output_axes(use)
        if axes is None or use.data is None:
            continue
        key: Any = here
        if use.eqn.primitive.name == "dot_general":
            contract, _ = use.eqn.params["dimension_numbers"]
            key = (use.eqn.invars[use.data], use.data, tuple(contract[use.data]))
        found.setdefault(key, []).append((use, axes))
    yield from found.values()


def _output_axes(use: Use) -> frozenset[int] | None:
    """The axes of a result that are the weight's; None where it shares others."""
    eqn = use.eqn
    if eqn.primitive.name == "conv_general_dilated" and use.data == 0:
        return frozenset({eqn.params["dimension_numbers"].out_spec[1]})
    if eqn.primitive.name != "dot_general" or use.data is None:
        return None
    contract, batch = eqn.params["dimension_numbers"]
    if batch[0]:
        return None
    rank = len(aval_shape(eqn.outvars[0]))
    operand = 1 - use.data
    wide = len(aval_shape(eqn.invars[operand])) - len(contract[operand])
    return frozenset(range(wide) if operand == 0 else range(rank - wide, rank))


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

    def run(self, values: Sequence[Any], reads: Mapping[Location, Any]) -> Any:
        """The result."""
        eqn, pattern, finish = self.use.eqn, self.pattern, self.finish(values)
        inputs = list(values[: len(eqn.invars)])
        site = self.handler
        if pattern.equations:
            site = dataclasses.replace(site, after=finish)
        product = functools.partial(bind, eqn)
        outs, _ = site(self.use, inputs, product, reads.get(self.use.location))
        if finish.done or not pattern.equations:
            return outs[0]
        rest = self.graph.original(
            pattern.equations, (*eqn.outvars, *pattern.given), (pattern.result,)
        )
        return rest(*outs, *values[len(eqn.invars) :])[0]


def _replacement(products: Sequence[Finished]) -> Replacement:
    sizes = [len(one.inputs) for one in products]

    def run(values: list[Any], reads: Mapping[Location, Any]) -> Sequence[Any]:
        parts = split(values, *sizes)[:-1]
        pairs = list(zip(products, parts, strict=True))
        if len(pairs) > 1:
            outs = share_input([(one, one.handler, part) for one, part in pairs])
            if outs is not None:
                return outs
        return [one.run(part, reads) for one, part in pairs]

    inputs = tuple(atom for one in products for atom in one.inputs)
    return Replacement(inputs, tuple(one.pattern.result for one in products), run)


def share_input(
    given: Sequence[tuple[Finished, Any, Sequence[Any]]],
) -> list[jax.Array] | None:
    """Multiply one input by several weights in one call.

    Args:
        given: the products, with their handlers and the values of their inputs.

    Returns:
        Their results; None if they are not all of the kind that can share a call.
    """
    plans, weights = [], []
    for one, handler, values in given:
        eqn = one.use.eqn
        found = handler.shareable(one.use, list(values[: len(eqn.invars)]))
        if found is None:
            return None
        plan, kernel, tensor = found
        plans.append((plan, kernel, tensor))
        arguments = one.finish(values).arguments(plan)
        weights.append(
            Part(
                tensor.values,
                tensor.scales,
                tensor.zeros,
                bits=tensor.format.bits,
                bias=arguments.get("bias"),
                then=arguments.get("then"),
            )
        )
    plan, kernel, _ = plans[0]
    if any(p.inputs != plan.inputs or k.x_bits != kernel.x_bits for p, k, _ in plans):
        return None
    first, handler, values = given[0]
    assert first.use.data is not None
    rows = plan.rows(values[first.use.data])
    outs = shared_input_matmul(
        rows, weights, x_bits=kernel.x_bits, implementation=handler.implementation
    )
    for one, handler, values in given:
        inputs = list(values[: len(one.use.eqn.invars)])
        finish = one.finish(values)
        others = len(given) - 1
        said = f"together with {others} of the same input"
        said = f"{finish.said}; {said}" if one.pattern.equations else said
        handler.note(one.use, inputs, kernel.how, said)
    return [p.result(y) for (p, _, _), y in zip(plans, outs, strict=True)]

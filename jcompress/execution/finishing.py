"""The products of a program with what follows them, those of one input together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jcompress.execution.after import Finished
from jcompress.execution.integer_images import Together
from jcompress.execution.members import Member, groups
from jcompress.execution.pools import Pool
from jcompress.execution.shared import Shared
from jcompress.fusion import Graph, follow_product
from jcompress.fusion.find import programs
from jcompress.kernels import shared_input_matmul
from jcompress.kernels.shared_input_matmul import Part
from jcompress.tracing.jaxprs import aval_shape, split
from jcompress.tracing.replacing import Replacement
from jcompress.tracing.trace import Traced
from jcompress.tracing.values import Location, Use


def finished_products(
    traced: Traced,
    handlers: Mapping[Location, Any],
    shared: Mapping[Location, Mapping[Any, Shared]],
) -> Iterator[tuple[Location, frozenset[int], Replacement]]:
    """The products of handlers with what follows them, those of one input together.

    Args:
        traced: the function, with calls written out.
        handlers: by location; each is copied with an `after` of its own.
        shared: the values that all who read them get rounded, by the location of their
            program.

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
        convolutions: list[Finished] = []
        for together in _of_one_input(traced, sorted(places[at])):
            patterns = []
            for use, axes in together:
                alone = len(together) == 1
                number = use.location[-1]
                # Where two products meet in one equation, the first one takes it.
                pattern = follow_product(graph, number, axes, alone=alone, others=taken)
                # What products of one call make, none of them can take.
                own = [other.eqn.outvars[0] for other, _ in together]
                circular = len(together) > 1 and any(
                    graph.depends(one, out) for out in own for one in pattern.given
                )
                if circular:
                    pattern = pattern.without(use.eqn.outvars[0])
                taken.update(pattern.equations)
                patterns.append(pattern)
            pairs = zip(together, patterns, strict=True)
            products = [
                Finished(graph, use, pattern, handlers[use.location])
                for (use, _), pattern in pairs
            ]
            if together[0][0].eqn.primitive.name == "conv_general_dilated":
                convolutions += products
            elif len(together) > 1 or patterns[0].equations:
                yield at, _behind(products), _replacement(products)
        if not convolutions:
            continue
        members = [*map(Member.convolution, convolutions), *_pools(graph, convolutions)]
        for group in groups(graph, members):
            every = frozenset(n for one in group for n in one.equations)
            if len(group) > 1 or (len(every) > 1 and not isinstance(group[0].of, Pool)):
                whole = Together(graph, group, shared.get(at, {}))
                yield at, every, whole.replacement()


def _pools(graph: Graph, convolutions: Sequence[Finished]) -> Iterator[Member]:
    """The max pools of what convolutions make, and of what such pools make."""
    made = {one.pattern.result for one in convolutions}
    for number, eqn in enumerate(graph.body.jaxpr.eqns):
        pool = Pool.of(number, eqn)
        if pool is not None and eqn.invars[0] in made:
            made.add(eqn.outvars[0])
            yield Member.pool(pool)


def _behind(products: Sequence[Finished]) -> frozenset[int]:
    """The equations that products take the place of, besides their own."""
    return frozenset(n for one in products for n in one.pattern.equations)


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

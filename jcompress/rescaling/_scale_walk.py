"""Which factors the leaves may take so that the function stays the same."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.rescaling._scale_rules import RULES, unknown
from jcompress.rescaling._scale_value import Scale, free
from jcompress.rescaling._unknowns import MOST, Floats, Solution, Term, Unknowns, Why
from jcompress.sites import WEIGHTS, leaf_axes
from jcompress.tensors import is_compressed
from jcompress.tensors.axes import Axes
from jcompress.tracing.jaxprs import (
    CUSTOM_GRADIENTS,
    Kind,
    aval_shape,
    kind_of,
    scan_counts,
    split,
)
from jcompress.tracing.trace import Traced
from jcompress.tracing.values import Place
from jcompress.tracing.walk import Domain, Inside, walk


@dataclasses.dataclass(frozen=True)
class LeafTerms:
    """The unknown factors of one leaf.

    Attributes:
        inputs: by position along the axes that products sum over, in the shape of the
            leaf with size 1 along the others; None of a leaf that no product uses.
        outputs: by position along the other axes; of an element-wise leaf along all.
        axes: the role of each axis; None of an element-wise leaf.
        why: why the leaf has no factors, if it has none.
    """

    inputs: Term | None = None
    outputs: Term | None = None
    axes: Axes | None = None
    why: str = ""

    @property
    def terms(self) -> tuple[Term, ...]:
        """Both."""
        return tuple(t for t in (self.inputs, self.outputs) if t is not None)


@dataclasses.dataclass(frozen=True)
class Found:
    """What the walk found.

    Attributes:
        traced: the traced function.
        leaves: the factors of each leaf, in the order of the traced leaves.
        solution: which of them are free.
    """

    traced: Traced
    leaves: tuple[LeafTerms, ...]
    solution: Solution

    def spread(self, logs: Floats) -> Floats:
        """By unknown its value, given those of the roots."""
        return self.solution.ratios * logs[self.solution.roots]

    def log_factor(self, number: int, values: Floats) -> Any:
        """The logarithm of what a leaf is multiplied by, broadcastable to its shape.

        Args:
            number: the leaf.
            values: the values of the unknowns.
        """
        terms = self.leaves[number].terms
        return sum((term.counts * values[term.ids] for term in terms), start=0.0)


def find(traced: Traced, *, turned: bool = False) -> Found:
    """Collect what every operation says of the factors, and solve it."""
    scales = Scales()
    leaves = tuple(
        _leaf_terms(scales.unknowns, traced, number)
        for number in range(len(traced.leaves))
    )
    inputs = [Scale(leaf.terms, origin=leaf.why) for leaf in leaves]
    data = [Scale(origin="an argument of the function") for _ in traced.data]
    for out in walk(traced.body, [*inputs, *data], scales):
        scales.vanish(out, Why("the result of the function"))
    return Found(traced, leaves, scales.unknowns.solve(turned=turned))


def _leaf_terms(unknowns: Unknowns, traced: Traced, number: int) -> LeafTerms:
    name, struct = traced.sites.leaves[number]
    if is_compressed(traced.leaves[number]):
        return LeafTerms(why=f"{name}, which is compressed already")
    if not jnp.issubdtype(struct.dtype, jnp.floating):
        return LeafTerms(why=f"{name}, which holds {struct.dtype}")
    sites = traced.sites.of(name)
    shape = tuple(struct.shape)
    weight = [site for site in sites if site.operation in WEIGHTS]
    if not weight:
        if math.prod(shape) > MOST:
            return LeafTerms(why=f"{name}, which is too large for factors by element")
        return LeafTerms(outputs=unknowns.fresh(shape))
    axes = leaf_axes(weight)
    products = traced.sites.products(name)
    sizes = {axis: shape[axis] for axis in axes.stack}
    inputs = {**sizes, **{axis: shape[axis] for axis in axes.input}}
    outputs = {**sizes, **{axis: shape[axis] for axis in axes.output}}
    if any(site.groups > 1 for site in products):
        return _grouped(unknowns, shape, axes, products[0])
    if not products:
        # The rows of a table that is only looked up share their factors.
        return LeafTerms(outputs=_over(unknowns, shape, inputs), axes=axes)
    for site in products:
        for axis in site.window_axes:
            inputs.pop(axis, None)
    return LeafTerms(
        inputs=_over(unknowns, shape, inputs, keep=True),
        outputs=_over(unknowns, shape, outputs),
        axes=axes,
    )


def _over(
    unknowns: Unknowns,
    shape: Sequence[int],
    sizes: Mapping[int, int],
    *,
    keep: bool = False,
) -> Term:
    return unknowns.fresh([sizes.get(d, 1) for d in range(len(shape))], keep=keep)


def _grouped(
    unknowns: Unknowns, shape: tuple[int, ...], axes: Axes, site: Any
) -> LeafTerms:
    """A grouped kernel: the inputs of each group have factors of their own."""
    outputs = _over(unknowns, shape, {axis: shape[axis] for axis in axes.output})
    depth = [axis for axis in axes.input if axis not in site.window_axes]
    if len(axes.output) != 1 or len(depth) != 1 or shape[depth[0]] == 1:
        why = "factors of its inputs pass it: its groups have one input each"
        return LeafTerms(outputs=outputs, axes=axes, why=why)
    (out,), (inner,) = axes.output, depth
    one = unknowns.fresh((site.groups, shape[inner]), keep=True)
    full = one.each(lambda x: np.repeat(x, shape[out] // site.groups, axis=0))
    turned = full if out < inner else full.each(np.transpose)
    sizes = [n if d in (out, inner) else 1 for d, n in enumerate(shape)]
    return LeafTerms(turned.each(lambda x: x.reshape(sizes)), outputs, axes)


class Scales(Domain[Scale]):
    """Follows the factors of leaves through a program.

    In a scan the arrays that it takes apart keep the axis of the steps, before the axes
    of the value, so that each layer has factors of its own.

    Attributes:
        unknowns: what was said of the factors.
    """

    def __init__(self) -> None:
        self.unknowns = Unknowns()

    def lead(self, term: Term, atom: Any) -> int:
        """How many axes of a term are those of enclosing scans."""
        return term.ids.ndim - len(aval_shape(atom))

    def vanish(self, value: Scale, why: Why) -> None:
        """A value must keep its scale."""
        self.unknowns.vanish(value.terms, why)

    def level(self, term: Term, axes: Sequence[int], why: Why) -> list[Term]:
        """A term that is the same along some axes, after saying so."""
        wide = [axis for axis in axes if term.ids.shape[axis] > 1]
        if not wide:
            return [term]
        first = term
        for axis in wide:
            first = first.first(axis)
        self.unknowns.vanish([term, first.times(-1)], why)
        return [first]

    def even(self, value: Scale, atom: Any, axes: Sequence[int], why: Why) -> Scale:
        """A value whose factor is the same along some axes, after saying so."""
        made = []
        for term in value.terms:
            lead = self.lead(term, atom)
            made += self.level(term, [lead + axis for axis in axes], why)
        return value.having(made)

    def ranked(self, eqn: Any, ins: Sequence[Scale]) -> list[Scale]:
        """The inputs of an element-wise operation, numbers with the axes of arrays."""
        rank = len(aval_shape(eqn.outvars[0]))
        made = []
        for value, atom in zip(ins, eqn.invars, strict=True):
            more = [1] * (rank - len(aval_shape(atom)))
            terms = [term.reshape(*term.ids.shape, *more) for term in value.terms]
            made.append(value.having(terms) if more else value)
        return made

    def combined(
        self, terms: Sequence[Term], ins: Sequence[Scale], *, free: bool = False
    ) -> Scale:
        """A value with these terms, made of others."""
        told = [v.origin for v in ins if v.origin and not v.constant]
        constant = all(value.constant for value in ins)
        return Scale(
            tuple(terms),
            free and not terms,
            told[0] if told else ("a constant" if constant else ""),
            constant,
        )

    def alike(self, ins: Sequence[Scale], why: Why) -> Scale:
        """What is made of values that must have one factor."""
        bound = [value for value in ins if not free(value)]
        if not bound:
            return self.combined((), ins, free=all(v.free for v in ins))
        first = min(bound, key=lambda value: len(value.terms))
        bare = [v for v in bound if not v.terms]
        if bare:
            note = "meets a constant" if bare[0].constant else f"meets {bare[0].origin}"
            why = why._replace(note=note)
        for value in bound:
            if value.terms is not first.terms:
                opposite = (term.times(-1) for term in first.terms)
                self.unknowns.vanish([*value.terms, *opposite], why)
        return self.combined(first.terms, ins)

    def constant(self, value: Any, aval: Any) -> Scale:
        """A constant keeps its scale, unless it is 0 or infinite everywhere."""
        return Scale((), _is_free(value), "a constant", True)

    def equation(
        self, eqn: Any, ins: list[Scale], place: Place, inside: Inside[Scale] | None
    ) -> list[Scale]:
        """The factors of the results, and what an operation says of those it meets."""
        why = Why(eqn.primitive.name, place.scope_of(eqn))
        kind = kind_of(eqn)
        if inside is not None:
            if kind is Kind.CUSTOM_GRADIENT:
                if eqn.primitive.name in CUSTOM_GRADIENTS:
                    return inside(ins)
            elif kind is Kind.SCAN:
                return self._scan(eqn, ins, inside)
            elif kind is not Kind.SHARD_MAP:
                return inside(ins)
        return RULES.get(eqn.primitive.name, unknown)(self, eqn, ins, why)

    def _scan(self, eqn: Any, ins: list[Scale], inside: Inside[Scale]) -> list[Scale]:
        consts, _ = n_known = scan_counts(eqn)
        known, xs = split(ins, sum(n_known))
        pairs = zip(known, eqn.invars, strict=False)
        opened = [
            value.having([term.expand(self.lead(term, atom)) for term in value.terms])
            for value, atom in pairs
        ]
        outs = inside([*opened, *xs])
        carry, ys = split(outs, len(known) - consts)
        results = zip(carry, eqn.outvars, strict=False)
        closed = [
            value.having(
                [term.squeeze(self.lead(term, atom) - 1) for term in value.terms]
            )
            for value, atom in results
        ]
        return [*closed, *ys]

    def carried(self, value: Scale) -> Scale:
        """The factor alone: what is 0 need not be in the next step."""
        origin = "what a loop carries" if value.constant else value.origin
        return dataclasses.replace(value, free=False, constant=False, origin=origin)

    def join(self, eqn: Any, a: Scale, b: Scale, place: Place) -> Scale:
        """Both have one factor."""
        why = Why(eqn.primitive.name, place.scope, "gives one step's value to the next")
        if kind_of(eqn) is Kind.COND:
            why = why._replace(note="has branches that give it")
            return self.alike([a, b], why)
        opposite = (term.times(-1) for term in a.terms)
        if not free(b):
            self.unknowns.vanish([*b.terms, *opposite], why)
        return a


def _is_free(value: Any) -> bool:
    """Whether a number or an array is 0 or infinite everywhere."""
    if isinstance(value, jax.Array) and not jnp.issubdtype(value.dtype, jnp.floating):
        return False
    array = np.asarray(value)
    if array.dtype.kind not in "fV" and not jnp.issubdtype(array.dtype, jnp.number):
        return False
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return bool(array.size and (array == 0).all())
    wide = array.astype(np.float64)
    return bool(array.size and ((wide == 0) | np.isinf(wide)).all())

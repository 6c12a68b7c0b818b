"""Find the constants by which attention divides the products of queries and keys."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jcompress.errors import MismatchError
from jcompress.shrinking._ids import Ids, Why
from jcompress.shrinking._labels import Constant, Contraction, Labels
from jcompress.sites import PRODUCTS
from jcompress.tracing.trace import Traced
from jcompress.tracing.values import Location

_CONTRACTIONS = frozenset({"conv_general_dilated", "ragged_dot_general"})
_EXPONENTS = (-0.5, -0.25)
"""All at once; or by halves, at the query and at the key."""


class WeightProducts(NamedTuple):
    """Which products have a weight among their factors, by location.

    Attributes:
        weights: a leaf as it is; such a product is no attention.
        derived: what was computed from leaves alone, as a query that does not depend on
            the data; or a weight that was changed before it is used.
    """

    weights: frozenset[Location]
    derived: frozenset[Location]

    @classmethod
    def of(cls, traced: Traced) -> "WeightProducts":
        """Read it off the table of sites."""
        sites = [s for s in traced.sites if s.operation in PRODUCTS]
        direct = frozenset(s.location for s in sites if not s.derived)
        return cls(direct, frozenset(s.location for s in sites) - direct)


class Attention:
    """Follows, beside the ids, which constants a product was multiplied by.

    Attributes:
        custom_gradients: the functions with gradient rules of their own.
    """

    def __init__(self, known: WeightProducts) -> None:
        self.custom_gradients: list[Location] = []
        self._known = known
        self._products: dict[Location, Contraction] = {}
        self._scores: dict[Location, Contraction] = {}
        self._met: list[tuple[Constant, tuple[Contraction, ...]]] = []

    def follow(
        self, eqn: Any, ins: list[Labels], outs: list[Labels], here: Location, why: Why
    ) -> list[Labels]:
        """The labels of an equation's results, with the products they are made of."""
        past = _merged(product for value in ins for product in value.past)
        name = eqn.primitive.name
        if name == "dot_general" or name in _CONTRACTIONS:
            past = (self._product(eqn, ins, here, why),)
        elif name in ("exp", "exp2"):
            reached = [p for p in past if p.at in self._products]
            scores = _merged([*self._scores.values(), *reached])
            self._scores = {product.at: product for product in scores}
            past = ()
        elif name in ("mul", "div") and past:
            past = self._multiplied(eqn, ins, here, past)
        given = [id(value) for value in ins]
        return [out if id(out) in given else out.with_past(past) for out in outs]

    def _product(
        self, eqn: Any, ins: list[Labels], here: Location, why: Why
    ) -> Contraction:
        if here in self._known.weights or eqn.primitive.name != "dot_general":
            # All are one: of them only counts by what they are multiplied since.
            return Contraction((), why, (), ())
        sides = tuple(
            frozenset(c for product in value.past for c in product.after)
            for value in ins[:2]
        )
        (axes, _), _ = eqn.params["dimension_numbers"]
        contracted = tuple(ins[0].ids[axis] for axis in axes)
        self._products[here] = Contraction(here, why, contracted, sides)
        return self._products[here]

    def _multiplied(
        self, eqn: Any, ins: list[Labels], here: Location, past: tuple[Contraction, ...]
    ) -> tuple[Contraction, ...]:
        divides = eqn.primitive.name == "div"
        for operand in (1,) if divides else (0, 1):
            number = ins[operand].number
            if number is None or number == 0:
                continue
            factor = 1 / number if divides else number
            dtype = eqn.invars[operand].aval.dtype
            inexact = jnp.issubdtype(dtype, jnp.inexact)
            rounding = float(jnp.finfo(dtype).eps) if inexact else 0.0
            constant = Constant(here, operand, factor, divides, max(rounding, 1e-6))
            self._met.append((constant, past))
            return tuple(p._replace(after=p.after | {constant}) for p in past)
        return past

    def rescaled(
        self, sizes: Callable[[tuple[Ids, ...]], tuple[int, int]]
    ) -> dict[Location, tuple[int, float]]:
        """By equation which input becomes which number.

        Args:
            sizes: of contracted axes the number of positions before and after.

        Raises:
            MismatchError: a query-key size shrinks and its constant is not found, found
                more than once, or stands where it cannot be changed.
        """
        found: dict[Location, tuple[int, float]] = {}
        unscaled: list[Contraction] = []
        rescaled = 0
        for product in self._products.values():
            before, after = sizes(product.contracted)
            if before == after:
                continue
            scores = self._scores.get(product.at)
            if scores is None:
                unscaled.append(product)
                continue
            powers = _powers(scores, before)
            total = sum(power for _, power in powers)
            if total != -0.5:
                if product.at in self._known.derived:
                    continue
                raise MismatchError(_not_found(scores, before, after, total))
            for constant, power in set(powers):
                self._check(constant, scores)
                number = after ** (-power if constant.divides else power)
                new = (constant.operand, number)
                if found.setdefault(constant.at, new) != new:
                    raise MismatchError(
                        f"{_ASKED}: one constant scales products of several sizes, "
                        f"among them {scores.why}"
                    )
            rescaled += 1
        strict = [p for p in unscaled if p.at not in self._known.derived]
        if strict and not rescaled:
            before, after = sizes(strict[0].contracted)
            raise MismatchError(
                f"{_ASKED}: {strict[0].why} sums over {before} positions, of which "
                f"{after} are left, and no softmax follows it"
            )
        return found

    def _check(self, constant: Constant, scores: Contraction) -> None:
        for place in self.custom_gradients:
            if constant.at[: len(place)] == place:
                raise MismatchError(
                    f"{_ASKED}: the constant of {scores.why} stands in a function with "
                    "a gradient rule of its own, which has it, too"
                )
        for other, past in self._met:
            elsewhere = [
                p for p in past if p.at in self._products and p.at not in self._scores
            ]
            if elsewhere and other.equals(constant.factor):
                raise MismatchError(
                    f"{_ASKED}: the constant of {scores.why} also scales what "
                    f"{elsewhere[0].why} makes; of a function that differentiates, "
                    "shrink what it differentiates: jax.grad(shrunk(fn, plan, ...))"
                )


_ASKED = "shrunk: rescale_attention"


def _merged(products: Iterable[Contraction]) -> tuple[Contraction, ...]:
    found: dict[Location, Contraction] = {}
    for product in products:
        known = found.get(product.at)
        if known is not None and known is not product:
            product = known._replace(after=known.after | product.after)
        found[product.at] = product
    return tuple(found.values())


def _powers(scores: Contraction, size: int) -> list[tuple[Constant, float]]:
    """Its constants that are powers of a size; what scales both sides comes twice."""
    return [
        (constant, power)
        for constants in (*scores.sides, scores.after)
        for constant in constants
        for power in _EXPONENTS
        if constant.equals(size**power)
    ]


def _not_found(scores: Contraction, before: int, after: int, total: float) -> str:
    constants = {c for side in (*scores.sides, scores.after) for c in side}
    seen = ", ".join(f"{c.factor:.6g}" for c in sorted(constants)) or "none"
    what = "no" if total == 0 else "not one"
    return (
        f"{_ASKED}: the query-key size of {scores.why} shrinks from {before} to "
        f"{after}, but there is {what} multiplication by {before} ** -0.5 = "
        f"{before**-0.5:.6g} of the query, the key or their product; the constants are "
        f"{seen}"
    )

"""Find softmax attention in a program, however it is written."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.fusion.graph import Graph, floats
from jcompress.fusion.rowwise import Form, Region, Unknown, full, same
from jcompress.fusion.scores import KEY, VALUE, first_axes, scores_before
from jcompress.kernels import attention
from jcompress.tracing.jaxprs import aval_shape, is_literal
from jcompress.tracing.uses import unsummed

_KEYS = 7
_MOST = 16
"""Equations of a softmax."""


@dataclasses.dataclass(frozen=True)
class Attention:
    """Two products with a softmax between them.

    Attributes:
        inputs: query, key, value, bias and mask if there are any, and the factors.
        result: what comes out.
        axes: the axes of all these, as `kernels.attention` wants them.
        fixed: for bias and mask, the axes along which they stay the same.
        scale: what the scores are multiplied by.
        fill: the score of what the mask leaves out.
        has_bias: whether there is a bias.
        has_mask: whether there is a mask.
        inverted: whether the mask says what is left out.
        factors: for each factor of the weights that is the same for all keys, such as
            a mask of heads, the axes of the result that its axes are.
        equations: all that this takes the place of.
    """

    inputs: tuple[Any, ...]
    result: Any
    axes: str
    fixed: tuple[frozenset[int], ...]
    scale: float
    fill: float
    has_bias: bool
    has_mask: bool
    inverted: bool
    factors: tuple[tuple[int, ...], ...]
    equations: tuple[int, ...]

    def run(self, *values: Any) -> list[jax.Array]:
        """Compute it by the one operation."""
        query, key, value, *rest = values
        count = len(rest) - len(self.factors)
        rest, factors = rest[:count], rest[count:]
        parts = [
            _first(one, fixed) for one, fixed in zip(rest, self.fixed, strict=True)
        ]
        bias = parts.pop(0) if self.has_bias else None
        mask = parts.pop(0) if self.has_mask else None
        if mask is not None and self.inverted:
            mask = jax.lax.bitwise_not(mask)
        result = attention(
            query,
            key,
            value,
            bias,
            mask,
            axes=self.axes,
            scale=self.scale,
            fill=self.fill,
        )
        for factor, axes in zip(factors, self.factors, strict=True):
            order = sorted(range(len(axes)), key=lambda d: axes[d])
            sizes = [1] * result.ndim
            for d in order:
                sizes[axes[d]] = factor.shape[d]
            placed = jnp.transpose(factor, order).reshape(sizes)
            result = result * placed.astype(result.dtype)
        return [result]


def find_attention(graph: Graph) -> list[Attention]:
    """All softmax attentions of a program."""
    found = []
    for number, eqn in enumerate(graph.body.jaxpr.eqns):
        if eqn.primitive.name != "dot_general":
            continue
        for side in range(2):
            one = _mixing(graph, number, eqn, side)
            if one is not None:
                found.append(one)
                break
    return found


def _mixing(graph: Graph, number: int, eqn: Any, side: int) -> Attention | None:
    """The attention whose last product is an equation, weights on one side."""
    contract, batch = eqn.params["dimension_numbers"]
    if len(contract[side]) != 1 or not floats(*eqn.invars, eqn.outvars[0]):
        return None
    order, atom, scalings = _weights(graph, eqn.invars[side])
    softmax = _softmax_input(graph, atom)
    if softmax is None:
        return None
    start, moved = softmax
    order = tuple(moved[d] for d in order)
    found = scores_before(graph, start)
    if found is None:
        return None
    first, scores = found
    product = graph.body.jaxpr.eqns[first]
    lettered = first_axes(product, scores.letters)
    if lettered is None:
        return None
    query, key, axes = lettered
    weights = "".join(scores.letters[d] for d in order)
    if weights[contract[side][0]] != KEY:
        return None
    other = 1 - side
    value = eqn.invars[other]
    names = [""] * len(aval_shape(value))
    names[contract[other][0]] = KEY
    for mine, theirs in zip(batch[other], batch[side], strict=True):
        names[mine] = weights[theirs]
    free = [d for d, name in enumerate(names) if not name]
    if len(free) != 1:
        return None
    names[free[0]] = VALUE
    shared = [weights[d] for d in batch[side]]
    left = [n for n in weights if n not in shared and n != KEY]
    sides = (left, [VALUE]) if side == 0 else ([VALUE], left)
    out = "".join((*shared, *sides[0], *sides[1]))
    if not (set(axes[0]) - set(axes[1]) - set(names)):
        return None  # Every query has keys of its own: these are no rows.
    if any(contract[side][0] in places for _, places in scalings):
        return None
    extra = scores.extra()
    given = {query, key, *(one for one, _ in extra if not is_literal(one))}
    given |= {factor for factor, _ in scalings}
    middle = graph.between(given, eqn.invars[side], 64)
    if middle is None or not graph.closed([*middle, number], {eqn.outvars[0]}):
        return None
    result, equations = eqn.outvars[0], [*middle, number]
    last = graph.only_user(result)
    while last is not None and last.primitive.name == "transpose":
        out = "".join(out[d] for d in last.params["permutation"])
        result = last.outvars[0]
        equations.append(graph.makers[result])
        last = graph.only_user(result)
    operands = [*axes, "".join(names), *(letters for _, letters in extra)]
    return Attention(
        inputs=(
            *(query, key, value),
            *(one for one, _ in extra),
            *(factor for factor, _ in scalings),
        ),
        result=result,
        axes=",".join(operands) + "->" + out,
        fixed=tuple(graph.fixed_axes(one) for one, _ in extra),
        scale=scores.scale,
        fill=scores.fill,
        has_bias=scores.bias is not None,
        has_mask=scores.mask is not None,
        inverted=scores.inverted,
        factors=tuple(
            tuple(out.index(weights[d]) for d in places) for _, places in scalings
        ),
        equations=tuple(equations),
    )


Scaling = tuple[Any, tuple[int, ...]]
"""A factor of a value, and which axes of that its own axes are."""


def _weights(graph: Graph, atom: Any) -> tuple[tuple[int, ...], Any, list[Scaling]]:
    """A value before transposes and factors of fewer axes.

    Returns:
        Where the axes of the value were before, what it was then, and the factors.
    """
    order = tuple(range(len(aval_shape(atom))))
    factors: list[Scaling] = []
    while True:
        eqn = graph.maker(atom)
        if eqn is None:
            return order, atom, factors
        places = unsummed(eqn)
        if eqn.primitive.name in ("transpose", "copy"):
            if eqn.primitive.name == "transpose":
                order = tuple(eqn.params["permutation"][d] for d in order)
            atom = eqn.invars[0]
        elif places is not None and len(places[0]) != len(places[1]):
            # `einsum("h,bhts->bhts", factor, weights)`.
            mine = 0 if len(places[0]) > len(places[1]) else 1
            other = 1 - mine
            if len(places[mine]) != len(order) or is_literal(eqn.invars[other]):
                return order, atom, factors
            axes = tuple(order.index(place) for place in places[other])
            factors.append((eqn.invars[other], axes))
            order = tuple(places[mine].index(d) for d in order)
            atom = eqn.invars[mine]
        else:
            return order, atom, factors


def _softmax_input(graph: Graph, atom: Any) -> tuple[Any, tuple[int, ...]] | None:
    """The value whose softmax over the last axis another is.

    Returns:
        It, and where the axes of the other are in it; None if there is none.
    """
    size = aval_shape(atom)[-1:]
    if not size or size == (1,):
        return None
    # How many keys there are may not be known; a softmax is one of any number.
    keys = size[0] if isinstance(size[0], int) else _KEYS
    for start in _candidates(graph, atom):
        shape = aval_shape(start)
        if shape[-1:] != size:
            continue
        equations = graph.between({start}, atom, _MOST)
        if not equations or not graph.closed(equations, {atom}):
            continue
        if not graph.differentiates(equations):
            continue
        given = full(np.random.default_rng(0), keys)
        try:
            known = Region(graph.body, shape, {start: given}).evaluate(equations)
        except Unknown:
            continue
        shifted = np.exp(given.numbers - given.numbers.max(axis=1, keepdims=True))
        expected = shifted / shifted.sum(axis=1, keepdims=True)
        made = known[atom]
        if made.form is Form.FULL and same(made.numbers, expected):
            last = len(shape) - 1
            return start, (*(made.order or range(last)), last)
    return None


def _candidates(graph: Graph, atom: Any) -> list[Any]:
    """What may be the input of a softmax, the likeliest first."""
    eqn = graph.maker(atom)
    if eqn is None:
        return []
    if eqn.primitive.name == "custom_jvp_call":
        return [one for one in eqn.invars if not is_literal(one)]
    if eqn.primitive.name not in ("div", "mul"):
        return []
    # The exponential stands above the line, its argument's largest number within.
    upper = graph.maker(eqn.invars[0])
    if upper is None or upper.primitive.name != "exp":
        return []
    found = [upper.invars[0]]
    shifted = graph.maker(found[0])
    if shifted is not None and shifted.primitive.name == "sub":
        found.insert(0, shifted.invars[0])
    moved = graph.maker(found[0])
    if moved is not None and moved.primitive.name == "transpose":
        # `jax.vmap` moves the scores after it took their largest.
        found.insert(1, moved.invars[0])
    return found


def _first(value: jax.Array, fixed: frozenset[int]) -> jax.Array:
    """The first number along each axis along which all are the same."""
    ends = [1 if d in fixed else n for d, n in enumerate(value.shape)]
    return jax.lax.slice(value, (0,) * value.ndim, ends)

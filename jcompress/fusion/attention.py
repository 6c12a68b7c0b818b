"""Find softmax attention in a program, however it is written."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.fusion.graph import Graph, floats
from jcompress.fusion.rowwise import Form, Region, Unknown, full, same
from jcompress.kernels import attention
from jcompress.tracing.jaxprs import aval_shape, is_literal
from jcompress.tracing.uses import unsummed

_LETTERS = "abcfghijklmnopqrtuvwxyz"
_FEATURE, _KEY, _VALUE = "d", "s", "e"
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


@dataclasses.dataclass
class _Scores:
    """What happens to scores between the first product and the softmax."""

    scale: float = 1.0
    fill: float = -math.inf
    bias: Any = None
    bias_order: tuple[int, ...] = ()
    mask: Any = None
    mask_order: tuple[int, ...] = ()
    inverted: bool = False
    letters: str = ""

    def extra(self) -> list[tuple[Any, str]]:
        """Bias and mask, those that there are, and the names of their axes."""
        pairs = ((self.bias, self.bias_order), (self.mask, self.mask_order))
        found = []
        for one, order in pairs:
            if one is not None:
                places = sorted(range(len(order)), key=lambda d: order[d])
                found.append((one, "".join(self.letters[d] for d in places)))
        return found


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
    found = _scores(graph, start)
    if found is None:
        return None
    first, scores = found
    product = graph.body.jaxpr.eqns[first]
    lettered = _first_axes(product, scores.letters)
    if lettered is None:
        return None
    query, key, axes = lettered
    weights = "".join(scores.letters[d] for d in order)
    if weights[contract[side][0]] != _KEY:
        return None
    other = 1 - side
    value = eqn.invars[other]
    names = [""] * len(aval_shape(value))
    names[contract[other][0]] = _KEY
    for mine, theirs in zip(batch[other], batch[side], strict=True):
        names[mine] = weights[theirs]
    free = [d for d, name in enumerate(names) if not name]
    if len(free) != 1:
        return None
    names[free[0]] = _VALUE
    shared = [weights[d] for d in batch[side]]
    left = [n for n in weights if n not in shared and n != _KEY]
    sides = (left, [_VALUE]) if side == 0 else ([_VALUE], left)
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


def _scores(graph: Graph, atom: Any) -> tuple[int, _Scores] | None:
    """The product that scores come from, and what happens to them on the way."""
    found = _Scores()
    rank = len(aval_shape(atom))
    order = tuple(range(rank))
    scaled = False
    while True:
        eqn = graph.maker(atom)
        if eqn is None or not floats(atom):
            return None
        name = eqn.primitive.name
        if name == "dot_general":
            letters = _letters_of(eqn, order)
            if letters is None:
                return None
            found.letters = letters
            return graph.makers[atom], found
        if name == "transpose":
            order = tuple(eqn.params["permutation"][d] for d in order)
            atom = eqn.invars[0]
        elif name in ("mul", "div"):
            pairs = [(0, 1)] if name == "div" else [(0, 1), (1, 0)]
            for mine, other in pairs:
                factor = graph.constant(eqn.invars[other])
                if factor:
                    found.scale *= factor if name == "mul" else 1 / factor
                    atom, scaled = eqn.invars[mine], True
                    break
            else:
                return None
        elif name == "add" and found.bias is None and not scaled:
            side = _side_of_scores(graph, eqn)
            if side is None:
                return None
            found.bias, atom = eqn.invars[1 - side], eqn.invars[side]
            found.bias_order = order
        elif name == "select_n" and not scaled:
            # Of what is added before the mask nothing is left where that says no.
            if found.bias is not None or found.mask is not None or len(eqn.invars) != 3:
                return None
            which, no, yes = eqn.invars
            below, above = graph.constant(no), graph.constant(yes)
            if (below is None) == (above is None) or aval_shape(which) == ():
                return None
            found.mask, found.mask_order = which, order
            found.inverted = below is None
            found.fill = above if below is None else below  # type: ignore[assignment]
            atom = no if below is None else yes
        else:
            return None


def _side_of_scores(graph: Graph, eqn: Any) -> int | None:
    """Which input of a sum comes from a product of two values that vary."""
    for mine in range(2):
        atom = eqn.invars[mine]
        for _ in range(6):
            maker = graph.maker(atom)
            if maker is None:
                break
            name = maker.primitive.name
            if name == "dot_general" and graph.only_user(atom) is not None:
                if len(maker.params["dimension_numbers"][0][0]) == 1:
                    return mine
                break
            if name in ("mul", "div", "transpose", "select_n", "add"):
                inputs = [v for v in maker.invars if graph.constant(v) is None]
                floating = [v for v in inputs if v.aval.dtype == np.float32]
                if not floating:
                    break
                atom = floating[0]
                continue
            break
    return None


def _letters_of(eqn: Any, order: tuple[int, ...]) -> str | None:
    """Names of the axes of scores, of which the last is the keys'."""
    contract, _ = eqn.params["dimension_numbers"]
    rank = len(aval_shape(eqn.outvars[0]))
    if len(contract[0]) != 1 or rank > len(_LETTERS):
        return None
    names = list(_LETTERS[:rank])
    names[order[-1]] = _KEY
    return "".join(names[d] for d in order)


def _first_axes(eqn: Any, letters: str) -> tuple[Any, Any, list[str]] | None:
    """Query and key of the first product, and the names of their axes.

    Args:
        eqn: the product.
        letters: names of the axes of the scores, as they reach the softmax.
    """
    contract, batch = eqn.params["dimension_numbers"]
    if not floats(*eqn.invars):
        return None
    rank = len(letters)
    names = list(_LETTERS[:rank])
    missing = [d for d in range(rank) if names[d] not in letters]
    names[missing[0]] = _KEY
    sides = []
    start = len(batch[0])
    for side in range(2):
        shape = aval_shape(eqn.invars[side])
        mine = [""] * len(shape)
        mine[contract[side][0]] = _FEATURE
        for place, dim in enumerate(batch[side]):
            mine[dim] = names[place]
        for dim, name in enumerate(mine):
            if not name:
                mine[dim] = names[start]
                start += 1
        sides.append("".join(mine))
    keys = 0 if _KEY in sides[0] else 1
    shared = {names[place] for place in range(len(batch[0]))}
    if _KEY in shared:
        return None
    return (
        eqn.invars[1 - keys],
        eqn.invars[keys],
        [sides[1 - keys], sides[keys]],
    )


def _first(value: jax.Array, fixed: frozenset[int]) -> jax.Array:
    """The first number along each axis along which all are the same."""
    ends = [1 if d in fixed else n for d, n in enumerate(value.shape)]
    return jax.lax.slice(value, (0,) * value.ndim, ends)

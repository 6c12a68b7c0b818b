"""Find what follows a product or convolution: bias, activation, gate, residual."""

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from jcompress.fusion.graph import Graph, floats
from jcompress.fusion.rowwise import Array, Form, Region, Rows, Unknown, same
from jcompress.kernels import Nonlinearity
from jcompress.tracing.jaxprs import aval_shape, is_literal

_MOST = 16
"""Equations of an activation function."""


@dataclasses.dataclass(frozen=True)
class AfterProduct:
    """What follows a product, in this order; None where there is nothing.

    Attributes:
        product: the number of the product's equation.
        bias: a value that is the same for all rows of the product.
        addend: of a convolution, a value of the result's shape, added before the
            activation.
        activation: a function of each number.
        factor: a value of the result's shape.
        residual: a value of the result's shape.
        result: what comes out.
        equations: those behind the product.
    """

    product: int
    bias: Any
    addend: Any
    activation: Nonlinearity | None
    factor: Any
    residual: Any
    result: Any
    equations: tuple[int, ...]

    @property
    def given(self) -> tuple[Any, ...]:
        """Bias, addend, factor and residual, those that there are."""
        every = (self.bias, self.addend, self.factor, self.residual)
        return tuple(one for one in every if one is not None)

    def without(self, result: Any) -> "AfterProduct":
        """The product alone, whose result is given."""
        return _nothing(self.product, result)


def _nothing(product: int, result: Any) -> AfterProduct:
    return AfterProduct(product, None, None, None, None, None, result, ())


def follow_product(
    graph: Graph,
    number: int,
    output_axes: frozenset[int],
    *,
    alone: bool = True,
    others: Collection[int] = (),
) -> AfterProduct:
    """What follows a product or a convolution.

    Args:
        graph: the program.
        number: the number of the product's equation.
        output_axes: the axes of its result that are the weight's.
        alone: whether factors and residuals are looked for.
        others: equations that are part of something else.
    """
    (out,) = graph.body.jaxpr.eqns[number].outvars
    convolves = graph.body.jaxpr.eqns[number].primitive.name != "dot_general"
    found = _nothing(number, out)
    if not floats(out):
        return found

    def taken(name: str) -> tuple[Any, Any] | None:
        """The equation behind and what it takes besides, if that is independent."""
        eqn = graph.only_user(found.result)
        if eqn is None or eqn.primitive.name != name or not floats(*eqn.invars):
            return None
        if graph.makers[eqn.outvars[0]] in others:
            return None
        other = eqn.invars[1 if eqn.invars[0] is found.result else 0]
        if is_literal(other) or aval_shape(eqn.outvars[0]) != aval_shape(out):
            return None
        return None if graph.depends(other, out) else (eqn, other)

    def then(eqn: Any, **changes: Any) -> AfterProduct:
        number = graph.makers[eqn.outvars[0]]
        equations = (*found.equations, number)
        return dataclasses.replace(
            found, result=eqn.outvars[0], equations=equations, **changes
        )

    rows = frozenset(range(len(aval_shape(out)))) - output_axes
    pair = taken("add")
    if pair is not None and rows <= graph.fixed_axes(pair[1]):
        found = then(pair[0], bias=pair[1])
    pair = taken("add") if convolves and alone else None
    if pair is not None and aval_shape(pair[1]) == aval_shape(out):
        found = then(pair[0], addend=pair[1])
    function = _activation(graph, found.result)
    if function is not None and not set(function[2]).intersection(others):
        activation, result, equations = function
        found = dataclasses.replace(
            found,
            activation=activation,
            result=result,
            equations=(*found.equations, *equations),
        )
    if not alone:
        return found
    pair = None if convolves else taken("mul")
    if pair is not None and aval_shape(pair[1]) == aval_shape(out):
        found = then(pair[0], factor=pair[1])
    pair = taken("add")
    if pair is not None and aval_shape(pair[1]) == aval_shape(out):
        found = then(pair[0], residual=pair[1])
    return found


def _activation(graph: Graph, start: Any) -> tuple[Nonlinearity, Any, list[int]] | None:
    """A function of one value alone, the last value that it makes and its equations."""
    if start in graph.results:
        return None
    reached: list[Any] = [start]
    for var in reached:
        for number in graph.users.get(var, []):
            eqn = graph.body.jaxpr.eqns[number]
            out, *more = eqn.outvars
            inner = all(
                v in reached or graph.constant(v) is not None for v in _vars(eqn)
            )
            same_shape = aval_shape(out) == aval_shape(start)
            if inner and not more and same_shape and out not in reached:
                reached.append(out)
        if len(reached) > _MOST:
            break
    for end in sorted(reached[1:], key=lambda v: -graph.makers[v]):
        equations = graph.between({start}, end, _MOST)
        if not equations or not graph.closed(equations, {end}):
            continue
        if any(user not in equations for user in graph.users[start]):
            continue
        if not graph.differentiates(equations):
            continue
        function = _function(graph, start, end, equations)
        if function is not None:
            return function, end, equations
    return None


def _vars(eqn: Any) -> list[Any]:
    return [atom for atom in eqn.invars if not is_literal(atom)]


def _function(
    graph: Graph, start: Any, end: Any, equations: list[int]
) -> Nonlinearity | None:
    """The activation function that equations compute."""
    region = Region(graph.body, aval_shape(start), {start: Rows(_PROBES, Form.FULL)})
    try:
        made = region.evaluate(equations)[end].numbers
    except Unknown:
        return None
    for activation, function in _FUNCTIONS.items():
        if same(made, function(_PROBES)):
            return activation
    return None


def _probes() -> Array:
    """Rows of numbers of several sizes, each compared relative to its largest."""
    steps = np.linspace(-1, 1, 41)
    rows = [scale * steps for scale in (0.01, 0.5, 3.0, 12.0, 300.0)]
    return np.stack(rows)


_PROBES = _probes()


def _logistic(x: Array) -> Array:
    made: Array = 0.5 + 0.5 * np.tanh(0.5 * x)
    return made


def _gelu(x: Array) -> Array:
    made: Array = 0.5 * x * (1 + np.vectorize(math.erf)(x * np.sqrt(0.5)))
    return made


_FUNCTIONS: dict[Nonlinearity, Callable[[Array], Array]] = {
    Nonlinearity.RELU: lambda x: np.maximum(x, 0),
    Nonlinearity.RELU6: lambda x: np.clip(x, 0, 6),
    Nonlinearity.SQUARED_RELU: lambda x: np.maximum(x, 0) ** 2,
    Nonlinearity.GELU: _gelu,
    Nonlinearity.GELU_TANH: lambda x: (
        0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    ),
    Nonlinearity.SILU: lambda x: x * _logistic(x),
    Nonlinearity.TANH: np.tanh,
    Nonlinearity.SIGMOID: _logistic,
}

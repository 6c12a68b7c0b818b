"""What a parameter leaf does in an equation in which it meets data."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.site import Operation
from jcompress.tracing.views import View

ELEMENTWISE = frozenset(
    [
        "abs",
        "acos",
        "acosh",
        "add",
        "add_any",
        "and",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "cbrt",
        "ceil",
        "clamp",
        "complex",
        "conj",
        "cos",
        "cosh",
        "digamma",
        "div",
        "eq",
        "eq_to",
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "ge",
        "gt",
        "imag",
        "integer_pow",
        "is_finite",
        "le",
        "le_to",
        "lgamma",
        "log",
        "log1p",
        "logistic",
        "lt",
        "lt_to",
        "max",
        "min",
        "mul",
        "ne",
        "neg",
        "nextafter",
        "not",
        # JAX 0.12's 1 - x^2, in the gradient of tanh.
        "one_minus_square",
        "or",
        "pow",
        "real",
        "rem",
        "round",
        "rsqrt",
        "select_n",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "sub",
        "tan",
        "tanh",
        "xor",
    ]
)
"""Operations whose results take one element of each input of the same shape."""


_PRODUCTS = frozenset(
    {"dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"}
)


@dataclasses.dataclass(frozen=True)
class Role:
    """How one input of an equation is used, in terms of that input's own axes.

    Attributes:
        operation: what the leaf does.
        input_dims: contracted axes; of a lookup, those taken whole.
        stack_dims: axes that number independent copies.
        data: which other input is the data; None where no single one is.
        repeats: multiplications for each element of the leaf.
        window_dims: contracted axes along which the input slides over the data.
        groups: of a convolution, how many parts its channels fall into.
    """

    operation: Operation
    input_dims: tuple[int, ...] = ()
    stack_dims: tuple[int, ...] = ()
    data: int | None = None
    repeats: int = 0
    window_dims: tuple[int, ...] = ()
    groups: int = 1


def product_role(eqn: Any, operand: int) -> Role | None:
    """The role of an input in a product or convolution; None in other equations.

    A `dot_general` that sums over no axis is an element-wise multiplication
    (`unsummed`), not a product.
    """
    params = eqn.params
    name = eqn.primitive.name
    if operand > 1 or name not in _PRODUCTS:
        return None
    other = 1 - operand
    data_shape = aval_shape(eqn.invars[other])
    if name == "dot_general":
        contract, batch = params["dimension_numbers"]
        if not contract[0]:
            return None
        used = {*contract[other], *batch[other]}
        free = [n for dim, n in enumerate(data_shape) if dim not in used]
        return Role(
            Operation.DOT,
            tuple(contract[operand]),
            tuple(batch[operand]),
            other,
            math.prod(free),
        )
    if name == "conv_general_dilated" and operand == 1:
        spec = params["dimension_numbers"]
        spatial = spec.rhs_spec[2:]
        out = aval_shape(eqn.outvars[0])
        if any(dilation != 1 for dilation in params["lhs_dilation"]):
            positions = [data_shape[dim] for dim in spec.lhs_spec[2:]]
        else:
            positions = [out[dim] for dim in spec.out_spec[2:]]
        repeats = out[spec.out_spec[0]] * math.prod(positions)
        inputs = (*spatial, spec.rhs_spec[1])
        groups = params["feature_group_count"] * params["batch_group_count"]
        return Role(Operation.CONV, inputs, (), 0, repeats, tuple(spatial), groups)
    if name in ("ragged_dot", "ragged_dot_general") and operand == 1:
        numbers = params["ragged_dot_dimension_numbers"]
        contract, batch = numbers.dot_dimension_numbers
        experts_dims = tuple(numbers.rhs_group_dimensions)
        if not experts_dims:
            return None
        used = {*contract[0], *batch[0]}
        free = [n for dim, n in enumerate(data_shape) if dim not in used]
        shape = aval_shape(eqn.invars[1])
        experts = math.prod(shape[dim] for dim in experts_dims)
        # Each row meets one expert only, so the count is a fraction of the dense one.
        repeats = math.prod(free) // experts if experts else 0
        stack = (*batch[1], *experts_dims)
        return Role(Operation.RAGGED_DOT, tuple(contract[1]), stack, 0, repeats)
    return None


def unsummed(eqn: Any) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Where the axes of both inputs stand in a `dot_general` that sums over none.

    `einsum("sd,s->sd", w, scale)` multiplies element by element, as
    `w * scale[:, None]` does, and is read alike.

    Returns:
        For each input, the axis of the result that each of its axes becomes; None for
        every other equation.
    """
    if eqn.primitive.name != "dot_general":
        return None
    contract, batch = eqn.params["dimension_numbers"]
    if contract[0]:
        return None
    start = len(batch[0])
    places: list[tuple[int, ...]] = []
    for side in range(2):
        found: dict[int, int] = {dim: out for out, dim in enumerate(batch[side])}
        rank = len(aval_shape(eqn.invars[side]))
        for dim in range(rank):
            if dim not in found:
                found[dim], start = start, start + 1
        places.append(tuple(found[dim] for dim in range(rank)))
    return places[0], places[1]


def elementwise(eqn: Any) -> bool:
    """Whether each element of the result takes one element of each input."""
    return eqn.primitive.name in ELEMENTWISE or unsummed(eqn) is not None


def lookup_role(eqn: Any, operand: int, meets_data: bool) -> Role | None:
    """The role of an input whose rows an index picks; None in other equations.

    A slice at a position that no data decides (the counter of a loop over layers) is
    a view, not a lookup.
    """
    if operand != 0:
        return None
    shape = aval_shape(eqn.invars[0])
    sizes = eqn.params.get("slice_sizes")
    stack: tuple[int, ...] = ()
    if eqn.primitive.name == "gather":
        stack = tuple(eqn.params["dimension_numbers"].operand_batching_dims)
    elif eqn.primitive.name != "dynamic_slice" or not meets_data:
        return None
    pairs = enumerate(zip(shape, sizes, strict=True))
    whole = tuple(dim for dim, (had, has) in pairs if had == has and dim not in stack)
    return Role(Operation.LOOKUP, whole, stack, 1)


def leaf_axes_of(
    views: Sequence[View], role: Role, rank: int
) -> tuple[tuple[int, ...], ...]:
    """Sort a leaf's axes into (input, output, stack) for a role of its views."""
    inputs = {axis for view in views for axis in view.axes(*role.input_dims)}
    stack: set[int] = set()
    for view in views:
        stack |= view.axes(*role.stack_dims) | view.stacked
    stack -= inputs
    output = set(range(rank)) - inputs - stack
    return tuple(sorted(inputs)), tuple(sorted(output)), tuple(sorted(stack))

"""Broadcasts that are left to the operations that take them, as ONNX does it.

A JAX program makes a bias as large as what it is added to, and jax2onnx does so with a
dozen nodes where a size is open. ONNX's own operations broadcast.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jcompress.interchange.onnx_pieces import Graph, Made, one
from jcompress.tracing.interpreter import bind

_OPERATORS: Mapping[str, str] = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "gt": "Greater",
    "lt": "Less",
    "ge": "GreaterOrEqual",
    "le": "LessOrEqual",
    "eq": "Equal",
    "select_n": "Where",
}
_DTYPES = (np.float32, np.int32, np.bool_)


@dataclasses.dataclass(frozen=True, eq=False)
class Broadcast:
    """An array that is yet to be broadcast.

    Attributes:
        eqn: the equation that does it.
        given: the array.
    """

    eqn: Any
    given: Any

    @classmethod
    def of(cls, eqn: Any, ins: Sequence[Any]) -> "Broadcast | None":
        """That of a `broadcast_in_dim`; None if its shape is computed, too."""
        return None if len(ins) > 1 else cls(eqn, ins[0])

    def done(self) -> jax.Array:
        """The array as the equation has it."""
        made: jax.Array = bind(self.eqn, [self.given])[0]
        return made

    def thin(self) -> jax.Array:
        """The array with axes of size 1, but for leading ones, where it has none."""
        x, rank = self.given, len(self.eqn.params["shape"])
        dims = self.eqn.params["broadcast_dimensions"]
        first = dims[0] if dims else rank
        added = [axis - first for axis in range(first, rank) if axis not in dims]
        if not added:
            return jax.numpy.asarray(x)
        sizes = iter(np.shape(x))
        shape = [next(sizes) if axis in dims else 1 for axis in range(first, rank)]
        axes = np.array(added, np.int64)
        kind = (shape, x.dtype)

        def write(graph: Graph, value: Made) -> Made:
            return graph.node("Unsqueeze", value, graph.constant(axes), gives=kind)

        return one(*kind, write, x)


def elementwise(eqn: Any, ins: Sequence[Any]) -> jax.Array | None:
    """An operation on arrays that are yet to be broadcast; None if it needs them done.

    Args:
        eqn: the equation.
        ins: its inputs, arrays or `Broadcast`.
    """
    operator = _OPERATORS.get(eqn.primitive.name)
    if operator is None or not any(isinstance(x, Broadcast) for x in ins):
        return None
    aval = eqn.outvars[0].aval
    whole = [x for x in ins if not isinstance(x, Broadcast)]
    # One of the arrays must have the size of the result, so that it comes out.
    if not any(np.shape(x) == aval.shape for x in whole):
        return None
    if any(atom.aval.dtype not in _DTYPES for atom in eqn.invars):
        return None
    if operator == "Where":
        if len(ins) != 3 or eqn.invars[0].aval.dtype != np.bool_:
            return None
        ins = [ins[0], ins[2], ins[1]]
    elif eqn.invars[0].aval.dtype == np.bool_:
        return None
    kind = (aval.shape, aval.dtype)

    def write(graph: Graph, *values: Made) -> Made:
        return graph.node(operator, *values, gives=kind)

    return one(*kind, write, *(_thin(x) for x in ins))


def _thin(x: Any) -> Any:
    return x.thin() if isinstance(x, Broadcast) else x


def done(x: Any) -> Any:
    """An array, broadcast if it was yet to be."""
    return x.done() if isinstance(x, Broadcast) else x

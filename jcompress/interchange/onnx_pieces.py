"""Parts of an ONNX graph that stand in a traced program until that is written.

A piece is one equation of a JAX program. It says of which shapes its results are, and
how to write its nodes. It holds the stored numbers of a weight, so that they reach the
file as they are, and can only be written, not run.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.extend.core import Primitive

Host = np.ndarray[Any, Any]
Made = Any
"""A value of the graph that is written."""

Kind = tuple[Sequence[Any], Any]
"""Shape and dtype of a value; sizes may be symbolic."""

MICROSOFT = "com.microsoft"
"""The domain of the operators that onnxruntime adds."""


class Graph(Protocol):
    """The graph that is written."""

    def constant(self, array: Host) -> Made:
        """An array of the file."""
        ...

    def node(
        self,
        operator: str,
        *inputs: Made,
        gives: "Kind | Sequence[Kind]",
        domain: str = "",
        **attributes: Any,
    ) -> Any:
        """One operation.

        Args:
            operator: its name.
            *inputs: what it takes; None for an input that is left out.
            gives: shape and dtype of its result, or of each of several.
            domain: where the operator is defined, if not by ONNX.
            **attributes: its attributes.

        Returns:
            The value of the result, or a list of several.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """Nodes that stand for an equation.

    Attributes:
        results: shape and dtype of what it computes.
        write: adds its nodes to the graph; gets the values of its inputs.
    """

    results: tuple[jax.ShapeDtypeStruct, ...]
    write: Callable[..., Sequence[Made]]

    def __call__(self, *inputs: jax.Array) -> list[jax.Array]:
        """Put it into the program that is being traced."""
        made: list[jax.Array] = piece_p.bind(*inputs, piece=self)
        return made


piece_p = Primitive("jcompress_onnx_piece")
piece_p.multiple_results = True


def _shapes(*_: Any, piece: Piece) -> list[Any]:
    return [jax.core.ShapedArray(each.shape, each.dtype) for each in piece.results]


piece_p.def_abstract_eval(_shapes)


def one(
    shape: Sequence[Any], dtype: Any, write: Callable[..., Made], *inputs: jax.Array
) -> jax.Array:
    """A piece with one result, put into the program that is being traced.

    Args:
        shape: of the result.
        dtype: of the result.
        write: `write(graph, *values)` adds the nodes and gives the result's value.
        *inputs: what the nodes take.
    """
    result = jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))

    def write_one(graph: Graph, *values: Made) -> list[Made]:
        return [write(graph, *values)]

    return Piece((result,), write_one)(*inputs)[0]


def copied(x: Any) -> jax.Array:
    """The same array as a value of its own."""
    kind = (np.shape(x), x.dtype)

    def write(graph: Graph, value: Made) -> Made:
        return graph.node("Identity", value, gives=kind)

    return one(*kind, write, x)

"""Values that depend on leaves and constants only, evaluated for given leaves."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jcompress.tensors import is_compressed

Host = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """An equation all of whose inputs are known, in one place of the program."""

    eqn: Any
    inputs: "tuple[Known, ...]"


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A value that depends on leaves and constants only.

    Attributes:
        shape: its shape.
        leaves: the numbers of the leaves that it is made from.
        source: the equation that gives it, the value that it is a reshape of, or the
            constant; None for a leaf.
        result: which of the equation's results it is; of a leaf, the leaf's number.
    """

    shape: tuple[int, ...]
    leaves: frozenset[int]
    source: Any = None
    result: int = 0


class Values:
    """Evaluates `Known` values for given leaves, each equation once."""

    def __init__(self, leaves: Sequence[Any]) -> None:
        self._leaves = leaves
        self._made: dict[Call, list[Any]] = {}

    def __call__(self, known: Known) -> Any:
        """The number that a known value has."""
        source = known.source
        if isinstance(source, Known):
            value = self(source)
            traced = isinstance(value, jax.core.Tracer)
            return (value if traced else np.asarray(value)).reshape(known.shape)
        if isinstance(source, Call):
            if source not in self._made:
                self._made[source] = self._call(source)
            return self._made[source][known.result]
        if source is not None:
            return source
        leaf = self._leaves[known.result]
        return leaf.dense() if is_compressed(leaf) else leaf

    def _call(self, call: Call) -> list[Any]:
        primitive = call.eqn.primitive
        ins = [self(value) for value in call.inputs]
        with call.eqn.ctx.manager:
            out = primitive.bind(*ins, **primitive.get_bind_params(call.eqn.params))
        return list(out) if primitive.multiple_results else [out]


def narrowed(known: Known) -> Known:
    """The value before its entries were repeated along axes that it did not have."""
    call = known.source
    if not isinstance(call, Call) or call.eqn.primitive.name != "broadcast_in_dim":
        return known
    (inner,) = call.inputs
    shape = [1] * len(known.shape)
    for axis, size in zip(
        call.eqn.params["broadcast_dimensions"], inner.shape, strict=True
    ):
        shape[axis] = size
    return Known(tuple(shape), known.leaves, inner)

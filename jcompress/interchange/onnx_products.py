"""Products and convolutions of arrays, as ONNX has them."""

import string
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.interchange.onnx_pieces import Graph, Made, one


def product(eqn: Any, ins: Sequence[Any]) -> jax.Array | None:
    """A `dot_general` of floats; jax2onnx takes some axes of stacks for others."""
    aval = eqn.outvars[0].aval
    if any(x.aval.dtype != np.float32 for x in (*eqn.invars, eqn.outvars[0])):
        return None
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    ranks = [atom.aval.ndim for atom in eqn.invars]
    kind = (aval.shape, aval.dtype)
    first = tuple(range(len(left_batch)))
    in_order = tuple(left_batch) == tuple(right_batch) == first
    as_matrices = (
        in_order
        and tuple(left) == (ranks[0] - 1,)
        and tuple(right) == (len(first),)
        and ranks[1] == len(first) + 2
        and (not first or ranks[0] == ranks[1])
        and ranks[0] > 1
    )
    letters = iter(string.ascii_letters)
    names: list[dict[int, str]] = [{}, {}]
    for pairs in (
        zip(left_batch, right_batch, strict=True),
        zip(left, right, strict=True),
    ):
        for a, b in pairs:
            names[0][a] = names[1][b] = next(letters)
    free = []
    for rank, named in zip(ranks, names, strict=True):
        for axis in range(rank):
            if axis not in named:
                named[axis] = next(letters)
                free.append(named[axis])
    terms = ["".join(named[i] for i in range(len(named))) for named in names]
    out = "".join([*(names[0][axis] for axis in left_batch), *free])

    def write(graph: Graph, x: Made, y: Made) -> Made:
        if as_matrices:
            return graph.node("MatMul", x, y, gives=kind)
        equation = f"{terms[0]},{terms[1]}->{out}"
        return graph.node("Einsum", x, y, gives=kind, equation=equation)

    return one(*kind, write, *ins)


def convolution(eqn: Any, ins: Sequence[Any]) -> jax.Array | None:
    """A convolution of floats, whatever the order of its axes."""
    params, aval = eqn.params, eqn.outvars[0].aval
    odd = params["batch_group_count"] != 1 or any(
        n != 1 for n in params["lhs_dilation"]
    )
    negative = any(end < 0 for ends in params["padding"] for end in ends)
    if odd or negative or any(x.aval.dtype != np.float32 for x in eqn.invars):
        return None
    numbers = params["dimension_numbers"]
    kind = (tuple(aval.shape[axis] for axis in numbers.out_spec), aval.dtype)
    window = {
        "strides": list(params["window_strides"]),
        "dilations": list(params["rhs_dilation"]),
        "group": params["feature_group_count"],
        "pads": [end for ends in zip(*params["padding"], strict=True) for end in ends],
    }

    def write(graph: Graph, x: Made, kernel: Made) -> Made:
        return graph.node("Conv", x, kernel, gives=kind, **window)

    images = jnp.transpose(ins[0], numbers.lhs_spec)
    made = one(*kind, write, images, jnp.transpose(ins[1], numbers.rhs_spec))
    back = [numbers.out_spec.index(axis) for axis in range(aval.ndim)]
    return jnp.transpose(made, back)

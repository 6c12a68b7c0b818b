"""Weights as indices into tables of values: stored so, and trained so."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.conversion import convert_leaves
from jcompress.errors import MismatchError
from jcompress.sharing.clusters import nearest
from jcompress.sites import WEIGHTS, Sites, leaf_axes
from jcompress.tensors import Codebook, is_compressed
from jcompress.tensors.axes import Axes, from_matrix, matrix_shape, to_matrix
from jcompress.tensors.codebook import MOST, look_up, pack_indices
from jcompress.tensors.rounding import round_to
from jcompress.tracing.interpreter import Program
from jcompress.tracing.trace import trace

Tables = Mapping[str, jax.Array]
"""The values of clustered leaves by the leaf's name, float32 [*S, R, C].

S are the sizes of the leaf's stack axes; its N outputs share R tables of C values,
N / R successive outputs one table.
"""


def to_codebooks(params: Any, tables: Tables, *, sites: Sites) -> Any:
    """Store weights as indices of the nearest of the values in their tables.

    Each leaf's `dense()` is, bit for bit, what `fake_cluster` computed with these
    tables. Works under `jit` too.

    Args:
        params: the parameters; the leaves that `tables` names are dense.
        tables: from `make_tables`, trained or not.
        sites: the sites of the function that will use the tree, with the same names.

    Returns:
        The tree with `Codebook` leaves.

    Raises:
        MismatchError: there is no table, or one does not fit its leaf; a leaf is no
            weight at any site, or is compressed already, absent, or of another shape
            than at its sites.
    """
    if not tables:
        raise MismatchError(
            "to_codebooks: there is no table, so there is nothing to store"
        )
    roles = {
        path: _role("to_codebooks", path, table, sites)
        for path, table in tables.items()
    }

    def convert(path: str, leaf: Any, table: jax.Array) -> Codebook:
        axes, shape = roles[path]
        places = nearest(to_matrix(jnp.asarray(leaf), axes), table).astype(jnp.uint8)
        return Codebook(
            indices=pack_indices(places, table.shape[-1]),
            codebook=table,
            shape=shape,
            dtype=leaf.dtype,
            stack_axes=axes.stack,
            output_axes=axes.output,
            input_axes=axes.input,
        )

    return convert_leaves("to_codebooks", params, tables, convert, sites=sites)


def fake_cluster(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function compute with weights that share the values of tables, in floats.

    The function returned takes `(params, tables, *args)`. Each weight that has a table
    is replaced by the nearest of its values. Differentiate it by what is to train:

    - the tables (`jax.grad(loss, argnums=1)`): the weights, and so the assignment, are
      fixed, and each value gets the sum of the gradients of its weights, as in Deep
      Compression. `params` may hold `Codebook` leaves then, whose indices are kept.
    - the weights (`argnums=0`): the assignment is made anew in every call, and the
      gradient passes straight through it; `make_tables` refreshes the values.
    - both, as one tree for optax: `argnums=(0, 1)`.

    A value that is exactly 0 gets no gradient, so that pruned weights stay 0. Nothing
    gets smaller or faster: it is a simulation, exact in that `to_codebooks` and
    `compressed` compute the same afterwards.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.

    Returns:
        The function. Called, it raises MismatchError if there is no table, a leaf
        with a table is no weight or compressed otherwise, or a table does not fit its
        leaf.

    References:
        Han et al. 2016, "Deep Compression", section 3.3; straight-through gradients as
        in `jcompress.quantization.fake_quant`.
    """

    @functools.wraps(fn)
    def simulated(params: Any, tables: Tables, *args: Any, **kwargs: Any) -> Any:
        if not tables:
            raise MismatchError(
                "fake_cluster: there is no table, so there is nothing to do"
            )
        traced = trace(fn, params, args, kwargs)
        roles = {
            path: _role("fake_cluster", path, table, traced.sites)
            for path, table in tables.items()
        }
        leaves = [
            _faked(name, leaf, roles[name][0], tables[name]) if name in tables else leaf
            for name, leaf in zip(traced.names, traced.leaves, strict=True)
        ]
        outs, _ = Program(traced=traced, handlers={})(leaves, traced.data)
        return traced.rebuild(outs)

    return simulated


def _faked(path: str, leaf: Any, axes: Axes, table: jax.Array) -> jax.Array:
    table = jnp.where(table == 0, jnp.zeros_like(table), table)
    if isinstance(leaf, Codebook):
        if leaf.axes != axes or leaf.codebook.shape != table.shape:
            raise MismatchError(
                f"fake_cluster: {path} is stored for tables {list(leaf.codebook.shape)}"
                f", and its table is {list(table.shape)}"
            )
        matrix = look_up(leaf.indices, table, inputs=leaf.matrix_shape[-1])
        return from_matrix(round_to(matrix, leaf.dtype), axes, leaf.shape)
    if is_compressed(leaf):
        raise MismatchError(
            f"fake_cluster: {path} is already a {type(leaf).__name__}; simulate with "
            "the dense weight"
        )
    leaf = jnp.asarray(leaf)
    weights = to_matrix(leaf, axes)
    fixed = jax.lax.stop_gradient(weights)
    places = nearest(fixed, jax.lax.stop_gradient(table))
    *stacks, rows, _ = table.shape
    grouped = places.reshape(*stacks, rows, -1)
    picked = jnp.take_along_axis(table, grouped, axis=-1).reshape(weights.shape)
    # The difference is 0 and carries the gradient, so the value is exactly the table's.
    faked = round_to(picked, leaf.dtype) + (weights - fixed)
    whole: jax.Array = from_matrix(faked, axes, leaf.shape)
    return whole


def _role(
    transform: str, path: str, table: jax.Array, sites: Sites
) -> tuple[Axes, tuple[int, ...]]:
    """The axes and the shape of a leaf that has a table, which is checked."""
    uses = sites.of(path)
    if not any(site.operation in WEIGHTS for site in uses):
        raise MismatchError(
            f"{transform}: there is a table for {path}, which is no weight of a "
            f"product or lookup; the weights are {', '.join(sites.weights[:8])}"
        )
    axes = leaf_axes(uses)
    stacks, outputs, _ = matrix_shape(uses[0].shape, axes)
    *lead, rows, size = (0, 0, *table.shape)[-max(table.ndim, 2) :]
    fits = table.dtype == jnp.float32 and rows > 0 and 1 <= size <= MOST
    if not fits or tuple(lead) != stacks or outputs % rows:
        raise MismatchError(
            f"{transform}: the table of {path} is {table.dtype} {list(table.shape)}, "
            f"not float32 [{', '.join([*map(str, stacks), 'R', 'C'])}] with R a "
            f"divisor of {outputs} and C at most {MOST}"
        )
    return axes, uses[0].shape

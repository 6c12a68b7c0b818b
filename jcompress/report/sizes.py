"""Parameters, bytes and multiplications of every layer, counted in the function."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.execution import compressed
from jcompress.leaves import named_leaves, path_name
from jcompress.report.text import in_blocks
from jcompress.sites import PRODUCTS, WEIGHTS
from jcompress.tensors import LowRank, is_compressed
from jcompress.tracing.jaxprs import Body, aval_shape
from jcompress.tracing.trace import Traced, abstract, is_array, trace
from jcompress.tracing.uses import product_role
from jcompress.tracing.values import Location, Place
from jcompress.tracing.walk import Domain, Inside, walk

BETWEEN_DATA = "(between data)"
"""The name of the row of products in no named scope that involve no parameter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One layer: the leaves below one name, or products that involve no parameter.

    Attributes:
        name: what the names of the layer's leaves begin with, `params/Dense_0`; of
            products between data, such as the scores of attention, the named scope
            that they stand in.
        operations: what its leaves do: the primitives, without repeats.
        parameters: elements of its arrays, or of those that its compressed leaves
            stand for; each once, however often it is used.
        nonzero: those that are not 0; None if only shapes are known.
        bytes: bytes that its leaves store.
        macs: multiplications of one call of the function as it is written.
        stored_macs: multiplications with stored numbers that are not 0, which sparse
            leaves and chains of `LowRank` factors need; zeros of a dense array are
            left out too, though no dense product leaves them out. None if not known.
    """

    name: str
    operations: tuple[str, ...]
    parameters: int
    nonzero: int | None
    bytes: int
    macs: int
    stored_macs: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a model; `print` shows the table.

    Attributes:
        rows: one for each layer in the order of the tree, then one for each scope
            with products between data.
        once: whether the body of a `while` loop, whose trip count is not known, was
            counted as if it ran once.
    """

    rows: tuple[Row, ...]
    once: bool

    @property
    def parameters(self) -> int:
        """Elements of all arrays, or of those that compressed leaves stand for."""
        return sum(row.parameters for row in self.rows)

    @property
    def nonzero(self) -> int | None:
        """Those that are not 0; None if only shapes are known."""
        return _total([row.nonzero for row in self.rows])

    @property
    def bytes(self) -> int:
        """Bytes stored."""
        return sum(row.bytes for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiplications of one call, those between data included."""
        return sum(row.macs for row in self.rows)

    @property
    def stored_macs(self) -> int | None:
        """Multiplications with stored numbers that are not 0; None if not known."""
        return _total([row.stored_macs for row in self.rows])

    def __str__(self) -> str:
        head = ("layer", "operation", "parameters", "not 0", "bytes")
        total = Row(
            name="total",
            operations=(),
            parameters=self.parameters,
            nonzero=self.nonzero,
            bytes=self.bytes,
            macs=self.macs,
            stored_macs=self.stored_macs,
        )
        cells = [
            (
                row.name,
                ", ".join(row.operations) or "-",
                *map(_number, (row.parameters, row.nonzero, row.bytes, row.macs)),
                _number(row.stored_macs),
            )
            for row in (*self.rows, total)
        ]
        table = [(*head, "multiplications", "with stored, not 0"), *cells]
        notes = ["multiplications with stored, not 0: simulated until measured"]
        if self.once:
            notes.append("the body of a while loop counts once")
        return "\n".join([in_blocks(table, right=range(2, 7)), *notes])


def _number(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _total(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def sizes(fn: Callable[..., Any], variables: Any, *args: Any, **kwargs: Any) -> Sizes:
    """Count parameters, bytes and multiplications, layer by layer.

    Traces `fn(variables, *args, **kwargs)`; nothing is computed. Multiplications are
    those of products and convolutions, one for each multiply-add, for the whole batch
    in `args`: k k c d H W for a convolution with an output of H W positions (padding
    included), n m for a product, 0 for a lookup. Products that involve no parameter,
    as in attention, have rows of their own. A body of a `scan` counts for each of its
    steps, both branches of a `cond` count.

    Args:
        fn: any function of a parameter tree, such as `model.apply`, written for dense
            leaves; of a tied tree `tied(fn, ties)`, of a shrunk one the shrunk one.
        variables: the tree; every array in it counts, statistics too. Leaves may be
            compressed or `jax.ShapeDtypeStruct`.
        *args: further arguments of `fn`; shapes suffice.
        **kwargs: further keyword arguments of `fn`.

    Raises:
        ValueError: `variables` has no array leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.report.sizes import sizes
        >>> params = {"dense": {"w": jnp.ones((3, 4)), "b": jnp.ones((1, 4))}}
        >>> layer = lambda p, x: x @ p["dense"]["w"] + p["dense"]["b"]
        >>> found = sizes(layer, params, jnp.ones((1, 3)))
        >>> found.parameters, found.macs
        (16, 12)
    """
    traced = trace(fn, variables, args, kwargs)
    leaves = dict(named_leaves(variables))
    layers: dict[str, list[str]] = {}
    for name in traced.names:
        layers.setdefault(name.rpartition("/")[0] or name, []).append(name)
    factored = {
        name: _factored_macs(name, fn, variables, args, kwargs, traced)
        for name in traced.names
        if isinstance(leaves[name], LowRank)
    }
    rows = [
        _row(layer, names, leaves, traced, factored) for layer, names in layers.items()
    ]
    counted = {site.location for site in traced.sites if site.operation in PRODUCTS} | {
        site.location for site in traced.sites if site.macs
    }
    count = _Multiplications(counted)
    count.run(traced.body)
    for scope, macs in count.macs.items():
        rows.append(
            Row(
                name=scope or BETWEEN_DATA,
                operations=tuple(count.operations[scope]),
                parameters=0,
                nonzero=0,
                bytes=0,
                macs=macs,
                stored_macs=macs,
            )
        )
    once = count.once or any(s.runs is None and s.macs for s in traced.sites)
    return Sizes(rows=tuple(rows), once=once)


def _row(
    layer: str,
    names: list[str],
    leaves: Mapping[str, Any],
    traced: Traced,
    factored: Mapping[str, int | None],
) -> Row:
    operations: dict[str, None] = {}
    parameters = stored = macs = 0
    nonzeros: list[int | None] = []
    multiplied: list[int | None] = []
    for name in names:
        leaf = leaves[name]
        uses = traced.sites.of(name)
        operations.update(
            (site.operation.value, None) for site in uses if site.operation in WEIGHTS
        )
        struct = abstract(leaf)
        size = math.prod(struct.shape)
        here = sum(site.total_macs for site in uses)
        nonzero = _nonzero(leaf)
        parameters += size
        stored += _bytes(leaf)
        macs += here
        nonzeros.append(nonzero)
        if name in factored:
            multiplied.append(factored[name])
        elif here and nonzero is None:
            multiplied.append(None)
        else:
            # Every element of a weight is in as many products as any other.
            multiplied.append(here * (nonzero or 0) // max(size, 1))
    return Row(
        name=layer,
        operations=tuple(operations),
        parameters=parameters,
        nonzero=_total(nonzeros),
        bytes=stored,
        macs=macs,
        stored_macs=_total(multiplied),
    )


def _bytes(leaf: Any) -> int:
    if is_compressed(leaf):
        return leaf.stored_bytes
    return int(math.prod(leaf.shape) * leaf.dtype.itemsize)


def _nonzero(leaf: Any) -> int | None:
    """How many elements are not 0; None if that cannot be told."""
    parts = jax.tree.leaves(leaf)
    unknown = (jax.ShapeDtypeStruct, jax.core.Tracer)
    if any(isinstance(part, unknown) for part in parts):
        return None
    dense = leaf.dense() if is_compressed(leaf) else leaf
    if jnp.issubdtype(dense.dtype, jax.dtypes.prng_key):
        return int(dense.size)
    return int(np.count_nonzero(np.asarray(dense)))


def _factored_macs(
    name: str,
    fn: Callable[..., Any],
    variables: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    traced: Traced,
) -> int | None:
    """What the factors of one `LowRank` multiply, as `compressed` runs them."""

    def alone(path: Any, leaf: Any) -> Any:
        if path_name(path) != name:
            return abstract(leaf) if is_compressed(leaf) else leaf
        return leaf

    tree = jax.tree_util.tree_map_with_path(alone, variables, is_leaf=is_compressed)
    leaf = dict(named_leaves(tree))[name]
    if any(is_compressed(factor) for factor in leaf.factors):
        return None
    flat, structure = jax.tree.flatten((tree, args, dict(kwargs)))
    where = [i for i, x in enumerate(flat) if is_array(x)]

    def program(arrays: list[Any]) -> Any:
        full = list(flat)
        for i, array in zip(where, arrays, strict=True):
            full[i] = array
        params, rest, more = jax.tree.unflatten(structure, full)
        outs = jax.tree.leaves(compressed(fn)(params, *rest, **more))
        return [out for out in outs if is_array(out)]

    closed = jax.make_jaxpr(program)([flat[i] for i in where])
    every, plain = _Multiplications(set()), _Multiplications(set())
    every.run(Body.of(closed))
    plain.run(traced.body)
    own = sum(site.total_macs for site in traced.sites.of(name))
    return sum(every.macs.values()) - (sum(plain.macs.values()) - own)


class _Multiplications(Domain[None]):
    """Counts the multiplications of a program, but for those in places given.

    Attributes:
        macs: the multiplications, by named scope.
        operations: the operations that make them.
        once: whether some stand in a `while` loop, whose body counts once.
    """

    def __init__(self, without: set[Location]) -> None:
        self._without = without
        self.macs: dict[str, int] = {}
        self.operations: dict[str, dict[str, None]] = {}
        self.once = False

    def run(self, body: Body) -> None:
        """Count a whole program."""
        walk(body, [None] * len(body.jaxpr.invars), self)

    def constant(self, value: Any, aval: Any) -> None:
        """Nothing has to be known of values."""

    def equation(
        self, eqn: Any, ins: list[None], place: Place, inside: Inside[None] | None
    ) -> list[None]:
        """Count one equation, as often as it runs."""
        if inside is not None:
            return inside(ins)
        role = product_role(eqn, 1) if len(eqn.invars) > 1 else None
        if role is not None and place.location not in self._without:
            scope = place.scope_of(eqn)
            macs = role.repeats * math.prod(aval_shape(eqn.invars[1])) * place.runs
            self.macs[scope] = self.macs.get(scope, 0) + macs
            self.operations.setdefault(scope, {})[role.operation.value] = None
            self.once |= place.in_while
        return [None] * len(eqn.outvars)

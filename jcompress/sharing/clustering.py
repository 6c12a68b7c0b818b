"""Weights that share values: k-means finds a few for each leaf."""

import dataclasses
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion import find_leaves, resolve_specs
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.rules import Resolved, Rules
from jcompress.sharing.clusters import Start as Start
from jcompress.sharing.clusters import fit_table
from jcompress.sharing.codebooks import to_codebooks
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors.axes import Axes, matrix_shape, to_matrix
from jcompress.tensors.codebook import MOST, index_bytes
from jcompress.tensors.weight_matrix import divisors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """How the weights of a rule's leaves come to share values.

    Attributes:
        entries: the number of values in a table, 2 to 256; up to 16, an index takes
            4 bits, else 8.
        rows: how many successive outputs share a table; None for all of a copy.
        start: where k-means begins.
        zero: whether one value is 0 and stays 0, so that a pruned leaf keeps the zeros
            that it has; weights near 0 become 0 too.
        iterations: the most that k-means makes.

    Raises:
        TypeError: a field is of the wrong type.
        ValueError: a field is out of range.
    """

    entries: int = 16
    rows: int | None = None
    start: Start = Start.LINEAR
    zero: bool = False
    iterations: int = 100

    def __post_init__(self) -> None:
        for name in ("entries", "rows", "iterations"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole and not (name == "rows" and value is None):
                raise TypeError(f"Cluster: {name} is {value!r}, not an int")
        if not isinstance(self.start, Start):
            raise TypeError(
                f"Cluster: start is {self.start!r}; use Start.LINEAR, Start.DENSITY "
                "or Start.PLUS_PLUS"
            )
        if not 2 <= self.entries <= MOST:
            raise ValueError(f"Cluster: entries is {self.entries}, not 2 to {MOST}")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"Cluster: rows is {self.rows}; at least 1 shares a table")
        if self.iterations < 1:
            raise ValueError(f"Cluster: iterations is {self.iterations}, not 1 or more")


def check_clusters(
    sites: Sites, rules: Rules[Cluster], *, transform: str = "cluster"
) -> Resolved[Cluster]:
    """Match clustering rules against a table of sites; nothing is computed.

    Args:
        sites: the table.
        rules: pairs of a predicate and a `Cluster`.
        transform: the caller's name, for the errors.

    Raises:
        TypeError: the rules are malformed, or a spec is no `Cluster`.
        MismatchError: a rule matches no weight, or the rules touch nothing; a matched
            leaf holds no floats, its outputs do not fall into groups of `rows`, or it
            would
            not become smaller.
    """
    resolved = resolve_specs(
        rules, sites, Cluster, transform=transform, usage="Cluster(entries=...)"
    )
    for path, spec in resolved.leaves.items():
        uses = sites.of(path)
        shape, dtype = uses[0].shape, uses[0].dtype
        number = resolved.rule_of[path]
        exclude = f"exclude it by a rule ({path!r}, None) before rule {number}"
        stacks, outputs, inputs = matrix_shape(shape, leaf_axes(uses))
        rows = outputs if spec.rows is None else spec.rows
        if rows < 1 or outputs % rows:
            raise MismatchError(
                f"{transform}: groups of {rows} do not divide the {outputs} outputs of "
                f"{path} {list(shape)}; sizes that do: "
                f"{', '.join(map(str, divisors(max(outputs, 1))))}"
            )
        copies = int(np.prod(stacks, dtype=np.int64))
        bits = outputs * index_bytes(inputs, spec.entries)
        after = copies * (bits + 4 * spec.entries * (outputs // rows))
        before = copies * outputs * inputs * dtype.itemsize
        if after >= before:
            raise MismatchError(
                f"{transform}: {path} {list(shape)} would not become smaller: indices "
                f"and tables take {after} bytes, and it has {before}; use fewer "
                f"entries or larger groups of rows, or {exclude}"
            )
    return resolved


def make_tables(
    params: Any,
    rules: Rules[Cluster],
    *,
    sites: Sites,
    importance: Any = None,
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Find by k-means the values that the weights of each leaf will share.

    The tables are plain arrays: they train beside the parameters in `fake_cluster` and
    become `Codebook` leaves in `to_codebooks`. `cluster` does both steps at once.

    With `importance` the error of each weight counts by how much the loss minds it.
    Good ones are the diagonal of the Hessian, or what is at hand instead: the mean of
    squared gradients (`jax.tree.map(jnp.square, grads)`, averaged over batches), or
    the second moments in the state of Adam (`nu` of `optax.ScaleByAdamState`).

    Args:
        params: the parameters, with dense leaves; not traced.
        rules: pairs of a predicate and a `Cluster`.
        sites: the sites of the function that will use the tree, with the same names.
        importance: a tree with the same names as `params`, where each clustered leaf
            has an array of its shape of numbers that are not negative. Where all those
            of a table are 0, the weights count alike. None counts all alike.
        key: a random key, for `Start.PLUS_PLUS`.

    Returns:
        For each leaf by its name the tables, float32 [*S, R, C].

    Raises:
        TypeError: the rules are malformed.
        MismatchError: a rule cannot apply (see `check_clusters`), meets a compressed
            leaf, or needs a key; a leaf or its importance is absent, or of another
            shape than at its sites.
        ValueError: one of them is traced, or holds a number that is not finite or is
            negative.

    References:
        Han et al. 2016, "Deep Compression", section 3; Choi et al. 2017, "Towards the
        Limit of Network Quantization", sections 3.3 and 3.5.
    """
    resolved = check_clusters(sites, rules, transform="make_tables")
    leaves = find_leaves("make_tables", params, resolved.leaves, sites=sites)
    matter = {} if importance is None else dict(named_leaves(importance))
    tables = {}
    for path, spec in resolved.leaves.items():
        if spec.start is Start.PLUS_PLUS and key is None:
            raise MismatchError(
                f"make_tables: the rule of {path} starts with Start.PLUS_PLUS, which "
                "draws at random; pass key=jax.random.key(...)"
            )
        axes = leaf_axes(sites.of(path))
        leaf = leaves[path]
        weights = None
        if importance is not None:
            if path not in matter:
                raise MismatchError(
                    f"make_tables: importance has no leaf {path}; it has "
                    f"{', '.join(list(matter)[:8])}"
                )
            given = matter[path]
            if np.shape(given) != leaf.shape:
                raise MismatchError(
                    f"make_tables: the importance of {path!r} is "
                    f"{list(np.shape(given))}, and the leaf {list(leaf.shape)}"
                )
            weights = _matrix(f"the importance of {path}", given, axes)
            if (weights < 0).any():
                raise ValueError(f"make_tables: the importance of {path} is negative")
        matrix = _matrix(path, leaf, axes)
        drawn = None if key is None else jax.random.fold_in(key, _number(path))
        tables[path] = _fitted(matrix, weights, spec, drawn)
    return tables


def _number(path: str) -> int:
    return zlib.crc32(path.encode())


def _fitted(
    matrix: np.ndarray[Any, Any],
    weights: np.ndarray[Any, Any] | None,
    spec: Cluster,
    key: jax.Array | None,
) -> jax.Array:
    *stacks, outputs, inputs = matrix.shape
    count = 1 if spec.rows is None else outputs // spec.rows
    groups = matrix.reshape(-1, outputs // count * inputs)
    draws = None
    if spec.start is Start.PLUS_PLUS and key is not None:
        shape = (len(groups), spec.entries)
        draws = np.asarray(jax.random.uniform(key, shape, jnp.float32), np.float64)
    found = []
    for number, group in enumerate(groups):
        part = None if weights is None else weights.reshape(groups.shape)[number]
        found.append(
            fit_table(
                group,
                part if part is not None and part.any() else None,
                entries=spec.entries,
                start=spec.start,
                zero=spec.zero,
                iterations=spec.iterations,
                draws=None if draws is None else draws[number],
            )
        )
    tables = np.stack(found).astype(np.float32)
    return jnp.asarray(tables.reshape(*stacks, count, spec.entries))


def cluster(
    params: Any,
    rules: Rules[Cluster],
    *,
    sites: Sites,
    importance: Any = None,
    key: jax.Array | None = None,
) -> Any:
    """Let the weights of each leaf share a few values, found by k-means.

    `to_codebooks` with the tables of `make_tables`, whose arguments and errors it has.
    Run the tree with `jcompress.execution.compressed`; train the values first, or
    weights and values together, with `fake_cluster`.

    Returns:
        The tree with a `Codebook` in place of each matched leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.sharing.clustering import Cluster, cluster
        >>> from jcompress.sites import find_sites
        >>> params = {"w": jnp.linspace(-1, 1, 64).reshape(8, 8)}
        >>> sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 8)))
        >>> small = cluster(params, [("w", Cluster(entries=4))], sites=sites)
        >>> small["w"].stored_bytes, small["w"].codebook.shape
        (48, (1, 4))
    """
    tables = make_tables(params, rules, sites=sites, importance=importance, key=key)
    return to_codebooks(params, tables, sites=sites)


def _matrix(what: str, leaf: Any, axes: Axes) -> np.ndarray[Any, Any]:
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError(
            f"make_tables: {what} is traced, and k-means runs on the host; call it "
            "outside of jit"
        )
    matrix = np.asarray(to_matrix(jnp.asarray(leaf), axes)).astype(np.float64)
    if not np.isfinite(matrix).all():
        bad = int((~np.isfinite(matrix)).sum())
        raise ValueError(
            f"make_tables: {what} holds {bad} of {matrix.size} numbers that are not "
            "finite"
        )
    return matrix

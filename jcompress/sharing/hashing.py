"""The hashing trick: the entries of a weight share values at random, by a hash."""

import dataclasses
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion import convert_leaves, resolve_specs
from jcompress.errors import MismatchError
from jcompress.rules import Resolved, Rules
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors.axes import Axes, matrix_shape, to_matrix
from jcompress.tensors.hashed import Hashed, places_and_signs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hash:
    """How the entries of a rule's leaves share values.

    Attributes:
        entries: how many entries of the weight share one value, on average: the number
            of times that a float32 leaf becomes smaller; at least 1.
        signs: whether entries that share a value may differ in sign.
        seed: mixed with the leaf's name, which gives each leaf a hash of its own.

    Raises:
        ValueError: a field is out of range.
    """

    entries: float
    signs: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.entries >= 1:
            raise ValueError(
                f"Hash: entries is {self.entries}; at least 1 entry reads a value"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"Hash: seed is {self.seed}, not from 0 to 2^32 - 1")


def check_hashes(
    sites: Sites, rules: Rules[Hash], *, transform: str = "hash_weights"
) -> Resolved[Hash]:
    """Match hashing rules against a table of sites; nothing is computed.

    Args:
        sites: the table.
        rules: pairs of a predicate and a `Hash`.
        transform: the caller's name, for the errors.

    Raises:
        TypeError: the rules are malformed, or a spec is no `Hash`.
        MismatchError: a rule matches no weight, or the rules touch nothing; a matched
            leaf holds no floats, is too large for a hash of 32 bits, or would not
            become
            smaller.
    """
    resolved = resolve_specs(
        rules, sites, Hash, transform=transform, usage="Hash(entries=...)"
    )
    for path, spec in resolved.leaves.items():
        site = sites.of(path)[0]
        number = resolved.rule_of[path]
        exclude = f"exclude it by a rule ({path!r}, None) before rule {number}"
        *_, outputs, inputs = matrix_shape(site.shape, leaf_axes(sites.of(path)))
        if outputs * inputs >= 2**32:
            raise MismatchError(
                f"{transform}: {path} {list(site.shape)} has {outputs * inputs} "
                f"positions, and the hash has 32 bits; {exclude}"
            )
        after = 4 * _count(outputs * inputs, spec)
        before = outputs * inputs * site.dtype.itemsize
        if after >= before:
            raise MismatchError(
                f"{transform}: {path} {list(site.shape)} would not become smaller: "
                f"the values of a matrix take {after} bytes, and it has {before}; let "
                f"more entries share one, or {exclude}"
            )
    return resolved


def hash_weights(params: Any, rules: Rules[Hash], *, sites: Sites) -> Any:
    """Let the entries of each weight share the values of a short vector, by a hash.

    A value begins as the mean of its entries (with their signs), the best fit in least
    squares. As the entries that share one are picked at random, a trained weight loses
    much by it: train the tree on. The `Hashed` leaves are parameters like others:
    `jax.grad` of `jcompress.execution.compressed(fn)` gives a tree of such leaves, and
    optax updates it. The weight is made dense where it is used: fewer bytes are stored
    and updated, not fewer multiplied. Works under `jit` too.

    Args:
        params: the parameters, with dense leaves.
        rules: pairs of a predicate and a `Hash`.
        sites: the sites of the function that will use the tree, with the same names.

    Returns:
        The tree with a `Hashed` in place of each matched leaf.

    Raises:
        TypeError: the rules are malformed.
        MismatchError: a rule cannot apply (see `check_hashes`), or meets a leaf that is
            compressed already, absent from the tree or of another shape than at its
            sites.

    References:
        Chen et al. 2015, "Compressing Neural Networks with the Hashing Trick".

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.execution import compressed
        >>> from jcompress.sharing.hashing import Hash, hash_weights
        >>> from jcompress.sites import find_sites
        >>> layer = lambda params, x: x @ params["w"]
        >>> params, x = {"w": jnp.ones((16, 16))}, jnp.ones((1, 16))
        >>> sites = find_sites(layer, params, x)
        >>> small = hash_weights(params, [("w", Hash(entries=8))], sites=sites)
        >>> loss = lambda small: compressed(layer)(small, x).sum()
        >>> jax.grad(loss)(small)["w"].values.shape
        (32,)
    """
    resolved = check_hashes(sites, rules)

    def convert(name: str, leaf: Any, spec: Hash) -> Hashed:
        return _fitted(name, jnp.asarray(leaf), spec, leaf_axes(sites.of(name)))

    return convert_leaves("hash_weights", params, resolved.leaves, convert, sites=sites)


def _count(size: int, spec: Hash) -> int:
    return max(1, round(size / spec.entries))


def _fitted(path: str, leaf: jax.Array, spec: Hash, axes: Axes) -> Hashed:
    matrix = to_matrix(leaf, axes).astype(jnp.float32)
    *stacks, outputs, inputs = matrix.shape
    size, count = outputs * inputs, _count(outputs * inputs, spec)
    seed = spec.seed ^ zlib.crc32(path.encode())
    places, signs = places_and_signs(size, count, seed=seed, signs=spec.signs)
    members = jnp.zeros(count, jnp.float32).at[places].add(np.float32(1))

    def mean(row: jax.Array) -> jax.Array:
        total = jnp.zeros(count, jnp.float32).at[places].add(row * signs)
        return total / jnp.maximum(members, np.float32(1))

    values = jax.vmap(mean)(matrix.reshape(-1, size)).reshape(*stacks, count)
    return Hashed(
        values=values,
        seed=seed,
        signs=spec.signs,
        shape=leaf.shape,
        dtype=leaf.dtype,
        stack_axes=axes.stack,
        output_axes=axes.output,
        input_axes=axes.input,
    )

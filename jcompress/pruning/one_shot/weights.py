"""`prune_weights`: remove weights of a tree in one shot, others making up for it."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jcompress.conversion import convert_leaves, resolve_specs
from jcompress.errors import MismatchError
from jcompress.pruning.one_shot.spec import OneShot
from jcompress.pruning.patterns import NM, Unstructured
from jcompress.rounding import Rounded
from jcompress.rules import Resolved, Rules
from jcompress.sites import Sites, leaf_axes
from jcompress.statistics.moments import (
    groups_of,
    in_groups,
    moments_of,
    out_of_groups,
    shared_by_groups,
)
from jcompress.tensors import QTensor
from jcompress.tensors.axes import Axes, from_matrix, matrix_shape, to_matrix
from jcompress.tensors.placing import keep_rows, rows_of
from jcompress.tensors.weight_matrix import scale_shape


def check(
    sites: Sites, rules: Rules[OneShot], *, transform: str = "prune_weights"
) -> Resolved[OneShot]:
    """Match the rules against a table of sites; nothing is computed.

    Raises:
        TypeError: the rules are malformed, or a spec is no `OneShot`.
        MismatchError: a rule matches no weight, a pattern or a group of scales does not
            fit its leaf, or a method needs the inputs of a leaf that has none.
    """
    resolved = resolve_specs(
        rules, sites, OneShot, transform=transform, usage="OneShot(method=..., ...)"
    )
    for path, spec in resolved.leaves.items():
        uses = sites.of(path)
        shape, axes = uses[0].shape, leaf_axes(uses)
        if spec.method.learns and not sites.products(path):
            raise MismatchError(
                f"{transform}: {path!r} is only looked up, so it has no inputs for "
                f"{type(spec.method).__name__} to learn from; give it Magnitude()"
            )
        try:
            spec.pattern.check(path, shape, axes)
        except MismatchError as error:
            raise MismatchError(f"{transform}: {error}") from None
        if spec.method.learns:
            _check_apart(path, sites, spec, transform)
        if spec.weights is not None:
            stacks, *sizes = matrix_shape(shape, axes)
            try:
                scale_shape((*stacks, *sizes), spec.weights.granularity)
            except ValueError as error:
                raise MismatchError(f"{transform}: {path!r}: {error}") from None
    return resolved


def _check_apart(path: str, sites: Sites, spec: OneShot, transform: str) -> None:
    """Raise MismatchError if a pattern or a scale goes across a convolution's groups.

    Each group has inputs of its own, so it is pruned apart from the others.
    """
    groups, why = groups_of(sites, path), ""
    if groups > 1 and not isinstance(spec.pattern, Unstructured | NM):
        why = (
            f"{spec.pattern!r} goes across them; use Unstructured() or NM(2, 4), or "
            "Magnitude()"
        )
    elif (shared := shared_by_groups(sites, path, spec.weights)) is not None:
        why = (
            f"with {shared!r} they would share a scale; use PerChannel() and "
            "FloatScales()"
        )
    if why:
        raise MismatchError(
            f"{transform}: {path!r} is the kernel of a convolution in {groups} groups, "
            f"which are pruned apart, each by its own inputs, and {why}"
        )


def prune_weights(
    params: Any,
    rules: Rules[OneShot],
    *,
    sites: Sites,
    moments: Mapping[str, jax.Array] | None = None,
) -> Any:
    """Remove weights in one shot, so that the outputs of each layer change little.

    Each matched leaf becomes a dense one with exact zeros, or, with
    `OneShot(weights=...)`, a `QTensor` whose removed weights are exactly 0. Store the
    zeros away with `jcompress.pruning.to_sparse`. Works under `jit`, too, where numbers
    that are not finite are not looked for.

    Args:
        params: the parameters, with dense leaves.
        rules: pairs of a predicate and a `OneShot`.
        sites: the sites of the function that will use the tree, with the same names.
        moments: the second moments of the inputs of each leaf, float32 [*S, K, K], up
            to a factor: what `jcompress.statistics.observe(fn, rules, SecondMoments())`
            gives. Of a convolution in G > 1 groups they are [*S, G, K, K], and each
            group loses its sparsity. `Magnitude()` needs none.

    Returns:
        A tree of the same structure but for the quantized leaves.

    Raises:
        TypeError: the rules are malformed.
        MismatchError: a rule cannot apply (see `check`), moments are missing or of
            another shape, or a leaf is compressed already, absent from the tree or of
            another shape than at its sites.
        ValueError: a leaf or its moments hold a number that is not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.pruning import NM
        >>> from jcompress.pruning.one_shot import prune_weights, sparsegpt
        >>> from jcompress.sites import find_sites
        >>> from jcompress.statistics import SecondMoments, observe
        >>> model = lambda params, x: x @ params["w"]
        >>> params = {"w": jax.random.normal(jax.random.key(0), (8, 4))}
        >>> x = jax.random.normal(jax.random.key(1), (64, 8))
        >>> rules = [("w", sparsegpt(NM(2, 4)))]
        >>> _, moments = observe(model, rules, SecondMoments())(params, x)
        >>> sites = find_sites(model, params, x)
        >>> pruned = prune_weights(params, rules, sites=sites, moments=moments)
        >>> int((pruned["w"] == 0).sum())
        16
    """
    specs = dict(check(sites, rules).leaves)
    wanted = {p: type(s.method).__name__ for p, s in specs.items() if s.method.learns}
    known = moments_of("prune_weights", moments, wanted, sites, grouped=True)
    return convert_leaves(
        "prune_weights",
        params,
        specs,
        lambda path, leaf, spec: pruned(
            path, leaf, spec, leaf_axes(sites.of(path)), known.get(path)
        ),
        sites=sites,
        advice="prune the tree of dense weights, before quantize and to_sparse",
    )


def pruned(
    path: str, leaf: Any, spec: OneShot, axes: Axes, moments: jax.Array | None
) -> jax.Array | QTensor:
    """One leaf with fewer weights."""
    known = not isinstance(leaf, jax.core.Tracer)
    if known and not np.isfinite(np.asarray(leaf).astype(np.float32)).all():
        raise ValueError(
            f"prune_weights: {path!r} holds numbers that are not finite in float32"
        )
    leaf = jnp.asarray(leaf)
    place = rows_of(leaf, axes)
    if spec.weights is None:
        dense: jax.Array = _pruned(leaf, moments, axes, spec, place)
        return dense
    values, scales, zeros = _rounded(leaf, moments, axes, spec, place)
    return QTensor.pack(values, scales, zeros, spec.weights, leaf, axes)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _pruned(
    leaf: jax.Array,
    moments: jax.Array | None,
    axes: Axes,
    spec: OneShot,
    place: NamedSharding | None,
) -> jax.Array:
    matrix = keep_rows(to_matrix(leaf, axes).astype(jnp.float32), place)
    apart = in_groups(matrix, moments)
    made = spec.method.prune(apart, spec.pattern, spec.removes, moments)
    made = keep_rows(out_of_groups(made, len(axes.stack)), place)
    return from_matrix(made, axes, leaf.shape).astype(leaf.dtype)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _rounded(
    leaf: jax.Array,
    moments: jax.Array | None,
    axes: Axes,
    spec: OneShot,
    place: NamedSharding | None,
) -> Rounded:
    assert spec.weights is not None
    matrix = keep_rows(to_matrix(leaf, axes).astype(jnp.float32), place)
    made = spec.method.prune_and_round(
        in_groups(matrix, moments), spec.pattern, spec.removes, moments, spec.weights
    )

    def whole(array: jax.Array) -> jax.Array:
        return keep_rows(out_of_groups(array, len(axes.stack)), place)

    return Rounded(*jax.tree.map(whole, tuple(made)))

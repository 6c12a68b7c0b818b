"""What leaves take and multiply in each form, from shapes: nothing is computed."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.low_rank import Svd
from jcompress.low_rank.choice import low_rank_leaf
from jcompress.low_rank.factorizing import quantize_factors
from jcompress.pruning import NM
from jcompress.pruning.one_shot import OneShot
from jcompress.quantization import Quantize, Weights, quantize
from jcompress.rounding import Nearest
from jcompress.rules import Predicate, Rules, resolve
from jcompress.sensitivity.candidates import (
    Candidate,
    Candidates,
    Keep,
    check_candidates,
    for_leaf,
    format_name,
    matrix_of,
    name_of,
    only,
    runs_small,
)
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors import LowRank, NMSparse, UnstructuredSparse
from jcompress.tensors.axes import matrix_shape
from jcompress.tensors.nm_sparse import take_kept


def stored_by_candidate(
    params: Any,
    candidates: Candidates,
    *,
    sites: Sites,
    leaves: Predicate = ...,
    partial: bool = False,
) -> dict[str, tuple[int | None, ...]]:
    """The bytes of each leaf in each form, from shapes; nothing is computed.

    Args:
        params: the parameters; shapes suffice.
        candidates: the forms; None keeps a leaf as it is. `Keep` suits no leaf.
        sites: the sites of the function.
        leaves: which leaves.
        partial: None for what does not suit a leaf, in place of raising.

    Raises:
        ValueError: there is no candidate, or one whose bytes depend on the weights.
        TypeError: one is of another kind.
        MismatchError: a candidate does not suit a leaf.
    """
    check_candidates(candidates)
    rules: Rules[bool] = [(leaves, True)]
    chosen = resolve(rules, sites, transform="measure_sensitivity").leaves
    every = dict(named_leaves(params))
    stored: dict[str, tuple[int | None, ...]] = {}
    for path in chosen:
        site = sites.of(path)[0]
        if not jnp.issubdtype(site.dtype, jnp.floating):
            continue
        if path not in every:
            raise MismatchError(
                f"measure_sensitivity: {path!r} is not in the tree; trace the sites "
                "with this tree"
            )
        shape = jax.ShapeDtypeStruct(site.shape, site.dtype)
        stored[path] = tuple(
            _size(path, shape, each, sites, partial) for each in candidates
        )
    return stored


def _size(
    path: str,
    leaf: jax.ShapeDtypeStruct,
    candidate: Candidate,
    sites: Sites,
    partial: bool,
) -> int | None:
    if isinstance(candidate, Keep):
        return None
    try:
        return stored_size(path, leaf, candidate, sites)
    except MismatchError as error:
        if partial:
            return None
        raise MismatchError(f"measure_sensitivity: {error}") from error


def stored_size(
    path: str, leaf: jax.ShapeDtypeStruct, candidate: Candidate, sites: Sites
) -> int:
    """The bytes of a leaf in a form, from its shape; nothing is computed.

    Of unstructured sparsity the most that it may take: weights that are zero anyway
    take none.

    Raises:
        MismatchError: the candidate does not suit the leaf, or makes it no smaller.
    """
    given = for_leaf(path, candidate, sites)
    if given is None:
        return int(leaf.size * leaf.dtype.itemsize)
    if isinstance(given, OneShot):
        return _sparse_size(path, leaf, given, sites)
    if isinstance(given, Svd | tuple):
        made = jax.eval_shape(lambda: {path: _factors(path, leaf, given, sites)})
    else:
        assert isinstance(given, Quantize)
        # How numbers are chosen changes nothing of how many bytes they take.
        plain = dataclasses.replace(given, rounding=Nearest())
        if given.weights is not None:
            plain = dataclasses.replace(plain, activation=None)
        made = jax.eval_shape(
            lambda x: quantize({path: x}, only(path, plain), sites=sites), leaf
        )
    return int(made[path].stored_bytes)


def _factors(
    path: str, leaf: jax.ShapeDtypeStruct, given: Any, sites: Sites
) -> LowRank:
    """Empty factors of the right shapes."""
    split, weights = given if isinstance(given, tuple) else (given, None)
    axes = leaf_axes(sites.of(path))
    stacks, outputs, inputs = matrix_shape(leaf.shape, axes)
    first = jnp.zeros((*stacks, split.rank, inputs), leaf.dtype)
    last = jnp.zeros((*stacks, outputs, split.rank), leaf.dtype)
    factors: Any = (first, last)
    made = low_rank_leaf(factors, (), leaf.shape, leaf.dtype, axes)
    if weights is not None:
        made = quantize_factors({path: made}, only(path, weights), sites=sites)[path]
    return made


def _sparse_size(
    path: str, leaf: jax.ShapeDtypeStruct, spec: OneShot, sites: Sites
) -> int:
    copies, outputs, inputs = matrix_of(path, sites)
    # Sparse leaves hold no float16.
    each = 1 if spec.weights is not None else max(leaf.dtype.itemsize, 2)
    if leaf.dtype == jnp.float16 and spec.weights is None:
        each = 4
    size = copies * outputs * -(-inputs // 8)
    if spec.weights is not None:
        _check_stored(path, spec.weights)
        size += 4 * copies * outputs
    if isinstance(spec.pattern, NM):
        row, _ = take_kept(
            np.zeros((1, inputs), np.int8), spec.pattern.n, spec.pattern.m
        )
        size += copies * outputs * row.shape[-1] * each
    else:
        size += 4 * copies * (outputs + 1) + copies * each * _staying(
            spec, outputs, inputs
        )
    before = leaf.size * leaf.dtype.itemsize
    if spec.weights is not None:
        bits = getattr(spec.weights.format, "bits", 8)
        before = copies * outputs * (-(-inputs * bits // 8) + 4)
    if size >= before:
        raise MismatchError(f"{path!r} would not become smaller as {name_of(spec)}")
    return size


def _check_stored(path: str, weights: Weights) -> None:
    """Raise MismatchError unless a sparse leaf can hold such integers."""
    bits = getattr(weights.format, "bits", 0)
    if not 4 < bits <= 8 or getattr(weights.granularity, "size", None):
        raise MismatchError(
            f"{path!r}: sparse leaves hold integers of 5 to 8 bits with one scale a "
            f"channel, not {format_name(weights)}"
        )


def _staying(spec: OneShot, outputs: int, inputs: int) -> int:
    return max(1, outputs * inputs - int(np.rint(spec.removes * outputs * inputs)))


def multiplied(path: str, candidate: Candidate, sites: Sites) -> float:
    """The fraction of a leaf's multiplications that are left in a form.

    Those with what is stored: zeros that are stored are multiplied; all of a leaf that
    is dense when it gets to its product (see `runs_small`).
    """
    given = for_leaf(path, candidate, sites)
    if not isinstance(given, OneShot | Svd | tuple) or not runs_small(path, sites):
        return 1.0
    _, outputs, inputs = matrix_of(path, sites)
    if isinstance(given, OneShot):
        if isinstance(given.pattern, NM):
            return given.pattern.n * (inputs // given.pattern.m) / inputs
        return _staying(given, outputs, inputs) / (outputs * inputs)
    split = given[0] if isinstance(given, tuple) else given
    assert split.rank is not None
    return split.rank * (outputs + inputs) / (outputs * inputs)


def share_multiplied(path: str, leaf: Any, sites: Sites) -> float:
    """The same of a leaf that is stored already, counted in what it stores."""
    if not runs_small(path, sites):
        return 1.0
    if isinstance(leaf, LowRank):
        return sum(math.prod(x.shape) for x in leaf.factors) / math.prod(leaf.shape)
    if isinstance(leaf, UnstructuredSparse):
        return leaf.stored_values / math.prod(leaf.shape)
    if isinstance(leaf, NMSparse):
        return math.prod(leaf.values.shape) / math.prod(leaf.shape)
    return 1.0

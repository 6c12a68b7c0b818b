"""A leaf in the form that a candidate says: as it is stored, and made dense again."""

from collections.abc import Mapping
from typing import Any

import jax

from jcompress.low_rank import Svd, factorize
from jcompress.low_rank.factorizing import quantize_factors
from jcompress.pruning import to_sparse
from jcompress.pruning.one_shot import OneShot, prune_weights
from jcompress.quantization import Quantize, quantize
from jcompress.sensitivity.candidates import (
    Candidate,
    for_leaf,
    only,
    takes_moments,
)
from jcompress.sites import Sites


def made(
    path: str,
    leaf: jax.Array,
    candidate: Candidate,
    *,
    sites: Sites,
    moments: Mapping[str, jax.Array] | None,
) -> Any:
    """A leaf as it is stored in a form; a plain array if the form is None.

    Raises:
        MismatchError: the candidate does not suit the leaf, or lacks moments.
    """
    given = for_leaf(path, candidate, sites)
    if given is None:
        return leaf
    tree = {path: leaf}
    known = None
    if moments is not None and takes_moments(path, given, sites):
        known = {k: m for k, m in moments.items() if k == path}
    if isinstance(given, OneShot):
        pruned = prune_weights(tree, only(path, given), sites=sites, moments=known)
        return to_sparse(pruned, only(path, given.pattern), sites=sites)[path]
    if isinstance(given, Svd | tuple):
        split, weights = given if isinstance(given, tuple) else (given, None)
        small = factorize(tree, only(path, split), sites=sites, moments=known or None)
        if weights is not None:
            small = quantize_factors(small, only(path, weights), sites=sites)
        return small[path]
    assert isinstance(given, Quantize)
    return quantize(tree, only(path, given), sites=sites, moments=known)[path]


def given_back(
    path: str,
    leaf: jax.Array,
    candidate: Candidate,
    *,
    sites: Sites,
    moments: Mapping[str, jax.Array] | None,
) -> jax.Array:
    """A leaf as a form gives it back: dense, of its own shape and dtype."""
    stored = made(path, leaf, candidate, sites=sites, moments=moments)
    if candidate is None:
        return leaf
    dense: jax.Array = stored.dense()
    return dense

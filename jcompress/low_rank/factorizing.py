"""`factorize`: store weights as products of thin factors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jcompress.conversion import (
    convert_leaves,
    find_leaves,
    replace_leaves,
    resolve_specs,
)
from jcompress.errors import MismatchError
from jcompress.low_rank.choice import Split, choose_ranks, split_tucker
from jcompress.low_rank.cp import CpSplit
from jcompress.low_rank.specs import Cp as Cp
from jcompress.low_rank.specs import Factoring as Factoring
from jcompress.low_rank.specs import Spatial as Spatial
from jcompress.low_rank.specs import Svd as Svd
from jcompress.low_rank.specs import Tucker as Tucker
from jcompress.low_rank.split import Host
from jcompress.rules import Resolved, Rules
from jcompress.sites import Operation, Sites
from jcompress.statistics.moments import moments_of
from jcompress.tensors import LowRank, QTensor, is_compressed
from jcompress.tensors.axes import Axes
from jcompress.tensors.specs import Weights


def factorize(
    params: Any,
    rules: Rules[Factoring],
    *,
    sites: Sites,
    moments: Mapping[str, jax.Array] | None = None,
) -> Any:
    """Store weights of a parameter tree as products of thin factors.

    Each matched leaf becomes a `LowRank` with factors of its own dtype, which
    `compressed` runs one after the other and which can be trained inside of it. The
    copies of a stacked leaf get one rank.

    Args:
        params: the parameters, with dense leaves; not traced, since ranks depend on the
            weights.
        rules: pairs of a predicate and an `Svd`, `Spatial`, `Tucker` or `Cp`.
        sites: the sites of the function that will use the tree, with the same names.
        moments: for each leaf with an `Svd` the second moments of its inputs, float32
            [*S, K, K], up to a factor: what `jcompress.statistics.observe(fn, rules,
            SecondMoments())` gives. `Svd` then keeps what matters for these inputs: the
            rank-r matrix with the least mean of `|(W - W_r) x|^2`.

    Returns:
        A tree of the same structure but for the factored leaves.

    Raises:
        TypeError: the rules are malformed, or a spec is of another kind.
        MismatchError: a rule matches no weight; a matched leaf is absent, of another
            shape than at its sites, not of floats, or already compressed; the factors
            would
            not be smaller, with the largest rank that would be; a budget is too small
            for one rank each; the moments are not those of the leaves; a spec for
            convolutions meets another operation; or `Cp` a grouped convolution.
        ValueError: a leaf is traced or holds a number that is not finite.

    References:
        Yuan et al. 2023, "ASVD: Activation-aware Singular Value Decomposition for
        Compressing Large Language Models", and Wang et al. 2024, "SVD-LLM",
        for weighting by the inputs.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.low_rank.factorizing import Svd, factorize
        >>> from jcompress.sites import find_sites
        >>> params = {"w": jnp.outer(jnp.arange(8.0), jnp.ones(6))}
        >>> sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 8)))
        >>> small = factorize(params, [("w", Svd(energy=0.99))], sites=sites)
        >>> small["w"].ranks, small["w"].stored_bytes
        ((1,), 56)
    """
    resolved = check_factoring(sites, rules)
    found = find_leaves(
        "factorize",
        params,
        resolved.leaves,
        sites=sites,
        advice="factorize the dense weights first and quantize their factors "
        "afterwards (quantize_factors)",
        traced="the ranks depend on its values",
    )
    given = {path: _on_host(path, leaf) for path, leaf in found.items()}
    weighting = _weighting(resolved, sites, moments)
    made: dict[str, LowRank] = {}
    spectra: dict[str, Split] = {}
    sums = {
        path: CpSplit.of(path, given[path], spec, sites)
        for path, spec in resolved.leaves.items()
        if isinstance(spec, Cp)
    }
    for path, spec in resolved.leaves.items():
        if isinstance(spec, Tucker):
            made[path] = split_tucker(path, given[path], spec, sites)
        elif not isinstance(spec, Cp):
            spectra[path] = Split.of(path, given[path], spec, sites, weighting)
    ranks = choose_ranks(resolved, spectra, sites)
    for path, split in spectra.items():
        made[path] = split.build(ranks[path])
    for path, cp in sums.items():
        made[path] = cp.build()
    return replace_leaves(params, made)


def check_factoring(
    sites: Sites, rules: Rules[Factoring], *, transform: str = "factorize"
) -> Resolved[Factoring]:
    """Match factoring rules against a table of sites; nothing is computed.

    Raises:
        TypeError: the rules are malformed, or a spec is of another kind.
        MismatchError: a rule matches no weight, or a spec for convolutions meets
            another operation.
    """
    resolved: Resolved[Factoring] = resolve_specs(
        rules,
        sites,
        Factoring,
        transform=transform,
        usage="Svd(...), Spatial(...), Tucker(...) or Cp(...)",
    )
    for path, spec in resolved.leaves.items():
        rule = resolved.rule_of[path]
        uses = sites.products(path)
        only = {site.operation for site in uses} == {Operation.CONV}
        if not isinstance(spec, Svd) and not only:
            found = sorted({site.operation.value for site in sites.of(path)})
            raise MismatchError(
                f"{transform}: rule {rule} gives {path!r} a {type(spec).__name__}, "
                f"which splits the window of a convolution, and the leaf's uses are "
                f"{', '.join(found)}; use Svd(...)"
            )
    return resolved


def quantize_factors(params: Any, rules: Rules[Weights], *, sites: Sites) -> Any:
    """Store the factors of `LowRank` leaves as packed integers or 8-bit floats.

    Args:
        params: a tree with `LowRank` leaves.
        rules: pairs of a predicate and `Weights`, the format of each factor; a leaf's
            predicate is matched as for `factorize`.
        sites: the sites of the function that will use the tree.

    Returns:
        The tree with `QTensor`s as the factors of the matched leaves.

    Raises:
        TypeError: the rules are malformed, or a spec is no `Weights`.
        MismatchError: a rule matches no weight, a matched leaf is no `LowRank`, a
            factor is compressed already, or a group size does not divide a factor's
            inputs.
    """
    resolved = resolve_specs(
        rules,
        sites,
        Weights,
        transform="quantize_factors",
        usage="Weights(format=Int(bits))",
    )

    def convert(path: str, leaf: Any, spec: Weights) -> LowRank:
        if not isinstance(leaf, LowRank):
            raise MismatchError(
                f"quantize_factors: {path!r} is a {type(leaf).__name__}, not a LowRank;"
                f" factorize it first, or exclude it by a rule ({path!r}, None)"
            )
        factors = tuple(
            _quantized(f"factor {number} of {path!r}", factor, spec, leaf)
            for number, factor in enumerate(leaf.factors)
        )
        return dataclasses.replace(leaf, factors=factors)

    return convert_leaves(
        "quantize_factors",
        params,
        resolved.leaves,
        convert,
        sites=sites,
        accept=(LowRank,),
        advice="factorize the dense weights first",
    )


def _on_host(path: str, leaf: Any) -> Host:
    """The leaf in float32 or float64; its own dtype is in the sites."""
    host = np.asarray(leaf)
    host = host.astype(np.float64 if host.dtype == np.float64 else np.float32)
    if not np.isfinite(host).all():
        raise ValueError(f"factorize: {path!r} holds numbers that are not finite")
    return host


def _weighting(
    resolved: Resolved[Factoring],
    sites: Sites,
    moments: Mapping[str, jax.Array] | None,
) -> dict[str, Host]:
    if moments is None:
        return {}
    wanted = {
        path: "Svd"
        for path, spec in resolved.leaves.items()
        if isinstance(spec, Svd) and sites.products(path)
    }
    found = moments_of("factorize", moments, wanted, sites)
    return {path: np.asarray(given) for path, given in found.items()}


def _quantized(name: str, factor: Any, spec: Weights, leaf: LowRank) -> QTensor:
    if is_compressed(factor):
        raise MismatchError(
            f"quantize_factors: {name} is already a {type(factor).__name__}"
        )
    lead = len(leaf.stack_axes)
    axes = Axes(
        stack=tuple(range(lead)),
        output=(lead,),
        input=tuple(range(lead + 1, factor.ndim)),
    )
    try:
        return QTensor.quantize(factor, axes, spec)
    except ValueError as error:
        raise MismatchError(f"quantize_factors: {name}: {error}") from None

"""`quantize`: replace the weights of a parameter tree by small stored numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jcompress.conversion import convert_leaves, resolve_specs
from jcompress.errors import MismatchError
from jcompress.quantization._leaf import convert_leaf
from jcompress.quantization.learned import (
    LearnedScales,
    Scales,
    check_learned,
    learns,
)
from jcompress.quantization.spec import Quantize
from jcompress.rounding import Nearest
from jcompress.rules import Resolved, Rules
from jcompress.sites import Site, Sites, leaf_axes
from jcompress.statistics.moments import (
    groups_of,
    moments_of,
    shared_by_groups,
)
from jcompress.tensors import QTensor, WithOutliers
from jcompress.tensors.axes import matrix_shape
from jcompress.tensors.range_specs import LeastError
from jcompress.tensors.ranges import Range
from jcompress.tensors.specs import (
    PerBlock,
    PerGroup,
    Weights,
)
from jcompress.tensors.weight_matrix import divisors


def check(
    sites: Sites, rules: Rules[Quantize], *, transform: str = "quantize"
) -> Resolved[Quantize]:
    """Match quantization rules against a table of sites; nothing is computed.

    Args:
        sites: the table.
        rules: pairs of a predicate and a `Quantize`.
        transform: the caller's name, for the errors.

    Raises:
        TypeError: the rules are malformed, or a spec is no `Quantize`.
        MismatchError: a rule matches no weight, or only weights that are no floats, the
            rules touch nothing, or a group size does not divide its inputs.
    """
    resolved = resolve_specs(
        rules,
        sites,
        Quantize,
        transform=transform,
        usage="Quantize(weights=..., activation=...)",
    )
    for path, spec in resolved.leaves.items():
        if spec.weights is not None:
            _check_group(path, sites.of(path), spec.weights, transform)
            if spec.rounding.learns:
                _check_apart(path, sites, spec, transform)
            if learns(spec.weights) and not isinstance(spec.rounding, Nearest):
                raise MismatchError(
                    f"{transform}: the scales of {path} are learned for "
                    f"rounding=Nearest(), not for {spec.rounding!r}"
                )
    return resolved


def _check_group(
    path: str, uses: Sequence[Site], weights: Weights, transform: str
) -> None:
    *_, outputs, inputs = matrix_shape(uses[0].shape, leaf_axes(uses))
    match weights.granularity:
        case PerGroup():
            wanted = [("groups", weights.granularity.size, "inputs", inputs)]
        case PerBlock():
            wanted = [
                ("blocks", weights.granularity.outputs, "outputs", outputs),
                ("blocks", weights.granularity.inputs, "inputs", inputs),
            ]
        case _:
            return
    for what, size, of, number in wanted:
        if number and number % size:
            raise MismatchError(
                f"{transform}: {what} of {size} do not divide the {number} {of} of "
                f"{path} {list(uses[0].shape)}; sizes that do: "
                f"{', '.join(map(str, divisors(number)))}"
            )


def _check_apart(path: str, sites: Sites, spec: Quantize, transform: str) -> None:
    """Raise MismatchError if groups of a convolution that learn would share a scale."""
    shared = shared_by_groups(sites, path, spec.weights)
    if shared is not None:
        raise MismatchError(
            f"{transform}: {path!r} is the kernel of a convolution in "
            f"{groups_of(sites, path)} groups, whose numbers follow from the inputs of "
            f"each group, and with {shared!r} groups would share a scale; use "
            "PerChannel() and FloatScales(), or rounding=Nearest() with "
            "range=FullRange()"
        )


def quantize(
    params: Any,
    rules: Rules[Quantize],
    *,
    sites: Sites,
    ranges: Mapping[str, Sequence[Range]] | None = None,
    moments: Mapping[str, jax.Array] | None = None,
    scales: Scales | None = None,
) -> Any:
    """Store the weights of a parameter tree as packed integers or 8-bit floats.

    Each matched leaf becomes the `QTensor` whose `dense()` is, bit for bit, what
    `fake_quant` computed for it; everything else is handed on as it is. (With
    `range=LeastError()`, of two scales that make the same error up to its rounding the
    one may take the other.) Works under `jit` too, where the check for numbers that
    are not finite is left out.

    Args:
        params: the parameters, with dense leaves.
        rules: pairs of a predicate and a `Quantize`, the same as for `fake_quant`.
        sites: the sites of the function that will use the tree, with the same names.
        ranges: for the leaves with a `MovingAverage` or `Static` range, one for each of
            their product sites in order, by the leaf's name.
        moments: for each leaf whose rounding learns, such as `Gptq()`, the second
            moments of its inputs, float32 [*S, K, K], up to a factor: what
            `jcompress.statistics.observe(fn, rules, SecondMoments())` gives; of a
            convolution in G > 1 groups [*S, G, K, K]. They tell `range=LeastError()`
            what errors count; without, all count alike.
        scales: for each leaf with an `Lsq` or `Pact` range, what was trained with
            `fake_quant(..., scales=...)`.

    Returns:
        A tree of the same structure but for the compressed leaves.

    Raises:
        TypeError: the rules are malformed.
        MismatchError: a rule cannot apply (see `check`), asks for activations only,
            needs ranges, moments or scales that are not given, or meets a leaf that is
            already compressed, absent from the tree or of another shape than at its
            sites.
        ValueError: a matched leaf holds a number that is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.sites import find_sites
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import Quantize, Weights, quantize
        >>> params = {"w": jnp.linspace(-1, 1, 12).reshape(4, 3)}
        >>> sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((2, 4)))
        >>> rules = [("w", Quantize(weights=Weights(format=Int(4))))]
        >>> small = quantize(params, rules, sites=sites)
        >>> small["w"].values.nbytes
        6
    """
    resolved = check(sites, rules)
    specs = storable(resolved, sites, transform="quantize")
    known = _moments(specs, moments, sites)
    learned = _learned(specs, scales, sites)

    def convert(name: str, leaf: Any, spec: Quantize) -> QTensor | WithOutliers:
        return convert_leaf(
            name,
            leaf,
            spec,
            sites.of(name),
            ranges or {},
            known.get(name),
            learned.get(name),
        )

    return convert_leaves(
        "quantize",
        params,
        specs,
        convert,
        sites=sites,
        advice="convert the tree of dense weights, and quantize before to_sparse",
    )


def needs_moments(spec: Quantize) -> bool:
    """Whether the inputs of a leaf decide its scales or numbers."""
    assert spec.weights is not None
    searched = isinstance(spec.weights.range, LeastError)
    return searched or spec.rounding.learns


def storable(
    resolved: Resolved[Quantize], sites: Sites, *, transform: str
) -> dict[str, Quantize]:
    """The specs of the leaves, each of which says how to store its weights.

    Raises:
        MismatchError: one does not, or needs inputs of a leaf that has none.
    """
    for path, spec in resolved.leaves.items():
        if spec.rounding.learns and not sites.products(path):
            raise MismatchError(
                f"{transform}: {path!r} is only looked up, so it has no inputs for "
                f"{type(spec.rounding).__name__} to learn from; give it "
                "rounding=Nearest()"
            )
        if spec.weights is None:
            raise MismatchError(
                f"{transform}: rule {resolved.rule_of[path]} gives {path} no weights "
                f"format ({spec!r}), so there is nothing to store; add "
                f"weights=Weights(...), or exclude it by a rule ({path!r}, None)"
            )
    return dict(resolved.leaves)


def _moments(
    specs: Mapping[str, Quantize],
    moments: Mapping[str, jax.Array] | None,
    sites: Sites,
) -> dict[str, jax.Array]:
    """The moments of the leaves whose scales or numbers they decide."""
    wanted: dict[str, str] = {}
    for path, spec in specs.items():
        if spec.rounding.learns:
            wanted[path] = type(spec.rounding).__name__
        elif needs_moments(spec) and path in (moments or {}):
            _check_apart(path, sites, spec, "quantize")
            wanted[path] = "LeastError"
    return moments_of("quantize", moments, wanted, sites, grouped=True)


def _learned(
    specs: Mapping[str, Quantize], scales: Scales | None, sites: Sites
) -> dict[str, LearnedScales]:
    """The learned scales of the leaves that have them."""
    known = {}
    for path, spec in specs.items():
        products = len(sites.products(path)) if learns(spec.activation) else 0
        if not learns(spec.weights) and not products:
            continue
        if scales is None or path not in scales:
            raise MismatchError(
                f"quantize: the scales of {path} are learned, and `scales` has none "
                f"for it (it has: {', '.join(scales or ()) or 'none'}); pass what was "
                "trained with fake_quant(..., scales=...)"
            )
        check_learned("quantize", path, spec, scales[path], products)
        known[path] = scales[path]
    return known

"""`quantize`: replace the weights of a parameter tree by small stored numbers."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves, path_name
from jcompress.rules import Resolved, Rules, resolve
from jcompress.sites import PRODUCTS, Site, Sites, leaf_axes
from jcompress.tensors import QTensor, is_compressed
from jcompress.tensors.axes import Axes, matrix_shape, to_matrix
from jcompress.tensors.formats import (
    Activation,
    MovingAverage,
    PerGroup,
    Quantize,
    Weights,
)
from jcompress.tensors.numbers import Range, divisors, quantize_matrix
from jcompress.tensors.packing import pack_bits


def _products(sites: Sequence[Site]) -> list[Site]:
    return [site for site in sites if site.operation in PRODUCTS]


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
        MismatchError: a rule matches no weight, the rules touch nothing, a matched
            leaf is not of a float dtype, or a group size does not divide its inputs.
    """
    resolved = resolve(rules, sites, transform=transform)
    for path, spec in resolved.leaves.items():
        if not isinstance(spec, Quantize):
            raise TypeError(
                f"{transform}: the spec of rule {resolved.rule_of[path]} is {spec!r}; "
                "a quantization rule carries Quantize(weights=..., activation=...)"
            )
        uses = sites.of(path)
        dtype, shape = uses[0].dtype, uses[0].shape
        if not jnp.issubdtype(dtype, jnp.floating):
            raise MismatchError(
                f"{transform}: {path} is {dtype} {list(shape)}, and only floats can be "
                f"quantized; exclude it by a rule ({path!r}, None) before rule "
                f"{resolved.rule_of[path]}"
            )
        if spec.weights is not None:
            _check_group(path, uses, spec.weights, transform)
    return resolved


def _check_group(
    path: str, uses: Sequence[Site], weights: Weights, transform: str
) -> None:
    if not isinstance(weights.granularity, PerGroup):
        return
    size, shape = weights.granularity.size, uses[0].shape
    *_, inputs = matrix_shape(shape, leaf_axes(uses))
    if inputs and inputs % size:
        raise MismatchError(
            f"{transform}: groups of {size} do not divide the {inputs} inputs of "
            f"{path} {list(shape)}; sizes that do: "
            f"{', '.join(map(str, divisors(inputs)))}"
        )


def quantize(
    tree: Any,
    rules: Rules[Quantize],
    *,
    sites: Sites,
    ranges: Mapping[str, Sequence[Range]] | None = None,
) -> Any:
    """Store the weights of a parameter tree as packed integers or 8-bit floats.

    Each matched leaf becomes the `QTensor` whose `dense()` is, bit for bit, what
    `fake_quant` computed for it; everything else is handed on as it is. Works under
    `jit` too, where the check for numbers that are not finite is left out.

    Args:
        tree: the parameters, with dense leaves.
        rules: pairs of a predicate and a `Quantize`, the same as for `fake_quant`.
        sites: the sites of the function that will use the tree, with the same names.
        ranges: for the leaves with a moving-average activation, one range for each of
            their product sites in order, by the leaf's name.

    Returns:
        A tree of the same structure but for the compressed leaves.

    Raises:
        TypeError: the rules are malformed.
        MismatchError: a rule cannot apply (see `check`), asks for activations only,
            needs ranges that are not given, or meets a leaf that is already compressed.
        ValueError: a matched leaf is absent from the tree, of another shape than at
            its sites, or holds a number that is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.sites import find_sites
        >>> from jcompress.quantization import Quantize, Weights, quantize
        >>> params = {"w": jnp.linspace(-1, 1, 12).reshape(4, 3)}
        >>> sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((2, 4)))
        >>> rules = [("w", Quantize(weights=Weights(bits=4)))]
        >>> small = quantize(params, rules, sites=sites)
        >>> small["w"].values.nbytes
        6
    """
    resolved = check(sites, rules)
    leaves = dict(named_leaves(tree))
    converted = {
        path: _convert(path, leaves, spec, sites, ranges or {})
        for path, spec in _storable(resolved).items()
    }
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: converted.get(path_name(path), leaf),
        tree,
        is_leaf=is_compressed,
    )


def _storable(resolved: Resolved[Quantize]) -> dict[str, Quantize]:
    for path, spec in resolved.leaves.items():
        if spec.weights is None:
            raise MismatchError(
                f"quantize: rule {resolved.rule_of[path]} gives {path} no weights "
                f"format ({spec!r}), so there is nothing to store; add "
                f"weights=Weights(...), or exclude it by a rule ({path!r}, None)"
            )
    return dict(resolved.leaves)


def _convert(
    path: str,
    leaves: Mapping[str, Any],
    spec: Quantize,
    sites: Sites,
    ranges: Mapping[str, Sequence[Range]],
) -> QTensor:
    uses = sites.of(path)
    if path not in leaves:
        raise ValueError(_absent(path, list(leaves)))
    leaf = leaves[path]
    if is_compressed(leaf):
        raise MismatchError(
            f"quantize: {path} is already a {type(leaf).__name__}; convert the tree of "
            "dense weights (and quantize before to_sparse), or exclude it by a rule "
            f"({path!r}, None)"
        )
    if np.shape(leaf) != uses[0].shape:
        raise ValueError(
            f"quantize: {path} is {list(np.shape(leaf))} in the tree and "
            f"{list(uses[0].shape)} at its sites; trace the sites with this tree"
        )
    leaf = jnp.asarray(leaf)
    assert spec.weights is not None
    axes = leaf_axes(uses)
    values, scales, zeros, broken = _packed(leaf, axes, spec.weights)
    if not isinstance(broken, jax.core.Tracer) and int(broken):
        raise ValueError(
            f"quantize: {path} holds {int(broken)} of {leaf.size} numbers that are not "
            "finite; a scale taken from them would spoil the whole leaf"
        )
    products = _products(uses)
    activation = spec.activation if products else None
    return QTensor(
        values=values,
        scales=scales,
        zeros=zeros,
        input_ranges=_input_ranges(path, activation, len(products), ranges),
        bits=spec.weights.bits,
        shape=leaf.shape,
        dtype=leaf.dtype,
        activation=activation,
        stack_axes=axes.stack,
        output_axes=axes.output,
        input_axes=axes.input,
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _packed(
    leaf: jax.Array, axes: Axes, spec: Weights
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array]:
    """The stored arrays of a leaf, and how many of its numbers are not finite.

    One program a shape and format, where step by step there would be a dozen.
    """
    values, scales, zeros = quantize_matrix(to_matrix(leaf, axes), spec)
    broken = jnp.sum(~jnp.isfinite(leaf), dtype=jnp.int32)
    return pack_bits(values, spec.bits), scales, zeros, broken


def _input_ranges(
    path: str,
    activation: Activation | None,
    products: int,
    ranges: Mapping[str, Sequence[Range]],
) -> tuple[Range, ...]:
    if activation is None or not isinstance(activation.range, MovingAverage):
        return ()
    if path not in ranges:
        given = ", ".join(ranges) or "none"
        raise MismatchError(
            f"quantize: the activation of {path} has a moving-average range, and "
            f"`ranges` has none for it (it has: {given}); pass what calibration or "
            "training collected, or use range=Dynamic()"
        )
    if len(ranges[path]) != products:
        raise MismatchError(
            f"quantize: {path} is in {products} products and `ranges` has "
            f"{len(ranges[path])} for it"
        )
    return tuple(
        Range(jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32))
        for low, high in ranges[path]
    )


def _absent(path: str, names: Sequence[str]) -> str:
    text = f"quantize: the sites speak of {path}, which is not in the tree"
    shorter = [name for name in names if path.endswith("/" + name)]
    if shorter:
        prefix = path[: -len(shorter[0]) - 1]
        return f"{text}; {shorter[0]} is: pass sites=sites.below({prefix!r})"
    longer = [name for name in names if name.endswith("/" + path)]
    if longer:
        prefix = longer[0][: -len(path) - 1]
        return f"{text}; {longer[0]} is: pass the subtree {prefix!r}"
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return (
        f"{text}; it has {listed}. If the tree is a subtree of the traced variables, "
        "pass sites=sites.below(prefix)"
    )

"""Quantize layer by layer: each learns from what the layers before it now give."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.conversion import replace_leaves
from jcompress.conversion.by_layers import (
    LeafDone,
    check_batches,
    check_observable,
    convert_by_layers,
    observed_moments,
    only,
    waiting_leaves,
)
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.quantization.convert import check, needs_moments, quantize, storable
from jcompress.quantization.propagating import Rows, cross_moments, propagated
from jcompress.quantization.spec import Quantize
from jcompress.rules import Rules
from jcompress.sites import find_sites, leaf_axes
from jcompress.statistics import observe
from jcompress.tensors import is_compressed


def quantize_by_layers(
    fn: Callable[..., Any],
    params: Any,
    rules: Rules[Quantize],
    batches: Sequence[tuple[Any, ...]],
    *,
    propagate: float = 0.0,
    reference: Any = None,
    on_leaf: Callable[[LeafDone], None] | None = None,
) -> Any:
    """Quantize leaf after leaf, in the order in which the function uses them.

    `quantize` with moments of the float model takes every layer's inputs as they were.
    Here those of a layer are observed when all layers before it are quantized, so that
    it makes up for their errors, too; and the second moments of one leaf at a time are
    in memory. It costs one compilation of the function and one pass over the batches
    for each leaf that learns from data.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        params: the parameters. Leaves that are compressed already stay as they are:
            give the tree that `on_leaf` saved to go on after an interruption.
        rules: pairs of a predicate and a `Quantize`, as for `quantize`.
        batches: the further arguments of `fn`, one tuple for each batch, at least one.
            All have the same shapes, or there is a compilation for each.
        propagate: from 0 to 1, how much of the errors that arrive from the layers
            before a leaf that learns from data makes up for: its weights first move
            towards those whose outputs, on the inputs that they now get, are the
            float model's. The inputs of one leaf and batch are then in memory twice.
        reference: the float parameters, if some leaves of `params` are compressed and
            `propagate` is above 0.
        on_leaf: called after each leaf, to show progress or to save the tree.

    Returns:
        The tree, as `quantize` gives it.

    Raises:
        TypeError: the rules are malformed.
        ValueError: there is no batch, `propagate` is not from 0 to 1, or a leaf holds a
            number that is not finite.
        MismatchError: as `quantize` and `observe`, before any work; with `propagate`
            also for leaves in a `while` loop, and without the reference that it needs.

    References:
        Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative
        Pre-trained Transformers", section 4: layers in order, on quantized inputs.
        Arai and Ichikawa 2025, "Quantization Error Propagation: Revisiting Layer-Wise
        Post-Training Quantization": `propagate`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import Quantize, Weights, quantize_by_layers
        >>> from jcompress.rounding import Gptq
        >>> model = lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"]
        >>> params = {name: jnp.eye(8) for name in "ab"}
        >>> x = jax.random.normal(jax.random.key(0), (64, 8))
        >>> rules = [(..., Quantize(weights=Weights(format=Int(4)), rounding=Gptq()))]
        >>> small = quantize_by_layers(
        ...     model, params, rules, [(x,)], on_leaf=lambda leaf: print(leaf.path))
        a
        b
        >>> small["b"].form
        'int4'
    """
    check_batches("quantize_by_layers", batches)
    if not 0 <= propagate <= 1:
        raise ValueError(
            f"quantize_by_layers: propagate is from 0 to 1, not {propagate!r}"
        )
    sites = find_sites(fn, params, *batches[0])
    name = "quantize_by_layers"
    specs = storable(check(sites, rules, transform=name), sites, transform=name)
    waiting = waiting_leaves(params, specs, sites)
    learning = {
        path for path in waiting if needs_moments(specs[path]) and sites.products(path)
    }
    check_observable(fn, params, learning, batches)
    first = params if reference is None else reference
    if propagate:
        _check_propagation(fn, params, first, learning, batches)

    def convert(params: Any, path: str) -> Any:
        moments = None
        if path in learning and propagate:
            both = _propagation(fn, first, params, path, batches)
            moments = {path: both[1]}
            axes, leaf = leaf_axes(sites.of(path)), dict(named_leaves(params))[path]
            moved = propagated(jnp.asarray(leaf), *both, axes, jnp.float32(propagate))
            params = replace_leaves(params, {path: moved})
        elif path in learning:
            moments = observed_moments(fn, params, path, batches)
        own = [(only(path), specs[path])]
        return quantize(params, own, sites=sites, moments=moments)

    return convert_by_layers(params, waiting, convert, on_leaf=on_leaf)


def _check_propagation(
    fn: Callable[..., Any],
    params: Any,
    reference: Any,
    learning: set[str],
    batches: Sequence[tuple[Any, ...]],
) -> None:
    """Raise where the inputs of the float model and of the other cannot be paired."""
    compressed = [name for name, x in named_leaves(reference) if is_compressed(x)]
    if compressed and learning:
        raise MismatchError(
            f"quantize_by_layers: {compressed[0]!r} is compressed, and propagate= "
            "compares with the float model; give its parameters as reference="
        )
    if not learning:
        raise MismatchError(
            "quantize_by_layers: propagate= is for leaves that learn from data, and "
            "none is left that does; give a rule a rounding such as Gptq()"
        )
    watched = observe(fn, [(lambda site: site.path in learning, True)], Rows())
    try:
        jax.eval_shape(watched, params, *batches[0])
    except TypeError as error:
        raise MismatchError(
            "quantize_by_layers: inputs inside of a loop whose length is not known "
            "cannot be kept to compare; use propagate=0"
        ) from error


def _propagation(
    fn: Callable[..., Any],
    reference: Any,
    params: Any,
    path: str,
    batches: Sequence[tuple[Any, ...]],
) -> tuple[jax.Array, jax.Array]:
    """Moments of the inputs that a leaf had with those that it gets, and of these."""
    observed = observe(fn, [(only(path), True)], Rows())

    @jax.jit
    def collect(reference: Any, params: Any, *batch: Any) -> Any:
        first = observed(reference, *batch)[1][path]
        now = observed(params, *batch)[1][path]
        return cross_moments(first, now), cross_moments(now, now)

    total = collect(reference, params, *batches[0])
    for batch in batches[1:]:
        total = jax.tree.map(jnp.add, total, collect(reference, params, *batch))
    cross, moments = total
    return cross, moments

"""Bias correction: the mean error of each channel goes into the bias."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion import replace_leaves
from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.leaves import named_leaves
from jcompress.rescaling.affine import Affine, AffineStep, Chain, find_chains
from jcompress.rescaling.known import Host, Values
from jcompress.sites import leaf_axes
from jcompress.statistics import Means, observe
from jcompress.tensors import is_compressed
from jcompress.tracing.trace import Traced, trace


@dataclasses.dataclass(frozen=True)
class _Place:
    """The bias of one product.

    Attributes:
        weight: the name of the weight.
        bias: the name of the leaf that is added by channel.
        order: the weight's output axes in the order of the channels.
        sizes: the sizes of the weight's output axes, in their own order; those of 1
            are left out.
        factor: what the product's result is multiplied with before the bias is added.
        entries: which entry of the bias each channel reads.
        sign: -1 if the bias is subtracted.
    """

    weight: str
    bias: str
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    factor: Host
    entries: Host
    sign: int

    def corrected(self, bias: jax.Array, error: Host) -> jax.Array:
        """The bias less the mean error [N] of the product."""
        by_channel = error.reshape(self.sizes).transpose(self.order)
        by_channel = by_channel.reshape(self.factor.shape) * self.factor
        taken = np.zeros(bias.size)
        np.add.at(taken, self.entries.ravel(), self.sign * by_channel.ravel())
        changed = np.asarray(bias, np.float64) - taken.reshape(bias.shape)
        return jnp.asarray(changed, bias.dtype)


def correct_biases(
    fn: Callable[..., Any],
    params: Any,
    small: Any,
    batches: Sequence[tuple[Any, ...]],
) -> Any:
    """Take the mean error of each output channel of compressed weights from its bias.

    Rounding shifts the mean of a product's outputs, channel by channel, and what
    follows, a ReLU say, is sensitive to that. The shift is measured, and the leaf that
    is added to the product's result makes up for it: layer after layer, in the order of
    execution, each on what the corrected layers before it give. The bias is found in
    the traced function, whatever its layers are called; products inside of loops, and
    those without a bias, stay as they are.

    It costs two compilations, and a pass over the batches for each bias.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        params: the parameters before compression.
        small: the same tree with compressed leaves, such as `quantize` gives; the
            biases are dense.
        batches: the further arguments of `fn`, one tuple for each batch, at least one;
            all of the same shapes, or there is a compilation for each.

    Returns:
        `small` with other biases.

    Raises:
        ValueError: there is no batch.
        MismatchError: no bias can be corrected; it tells why of each compressed leaf.

    References:
        Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
        Correction", section 4.2 and appendix D (empirical correction).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.correction import correct_biases
        >>> from jcompress.execution import compressed
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import Quantize, Weights, quantize
        >>> from jcompress.sites import find_sites
        >>> layer = lambda params, x: x @ params["w"] + params["b"]
        >>> w = jax.random.normal(jax.random.key(0), (16, 4))
        >>> params = {"w": w, "b": jnp.zeros(4)}
        >>> x = 1 + jax.random.normal(jax.random.key(1), (64, 16))
        >>> rules = [("w", Quantize(weights=Weights(format=Int(3))))]
        >>> small = quantize(params, rules, sites=find_sites(layer, params, x))
        >>> small = correct_biases(layer, params, small, [(x,)])
        >>> shift = (compressed(layer)(small, x) - layer(params, x)).mean(0)
        >>> bool(jnp.abs(shift).max() < 1e-5)
        True
    """
    if not batches:
        raise ValueError(
            "correct_biases: batches is empty; give at least one tuple of the "
            "arguments that the function takes after the tree"
        )
    traced = trace(fn, params, batches[0], {})
    leaves = dict(named_leaves(small))
    places, reasons = _places(traced, leaves)
    if not places:
        told = "; ".join(f"{path}: {why}" for path, why in reasons.items())
        raise MismatchError(
            "correct_biases: there is no bias to correct. "
            + (told or "No leaf of `small` is compressed")
        )
    watched = {place.weight for place in places}
    observed = observe(
        fn, [(lambda site: site.path in watched, True)], Means(), outputs=True
    )
    wanted = _means(jax.jit(observed), params, batches)
    run = jax.jit(compressed(observed))
    for place in places:
        found = _means(run, small, batches)
        error = found[place.weight] - wanted[place.weight]
        bias = place.corrected(leaves[place.bias], error)
        leaves[place.bias] = bias
        small = replace_leaves(small, {place.bias: bias})
    return small


def _means(
    run: Callable[..., Any], params: Any, batches: Sequence[tuple[Any, ...]]
) -> dict[str, Host]:
    """The mean outputs [N] of the products of each watched leaf, in float64."""
    total = run(params, *batches[0])[1]
    for batch in batches[1:]:
        total = total + run(params, *batch)[1]
    return {path: np.asarray(each.mean, np.float64) for path, each in total.items()}


def _places(
    traced: Traced, small: Mapping[str, Any]
) -> tuple[list[_Place], dict[str, str]]:
    """The biases in the order of execution, and why other products have none."""
    affine = find_chains(traced)
    chains: dict[str, list[Chain]] = {}
    for chain in affine.chains:
        if len(chain.weight.leaves) == 1:
            (leaf,) = chain.weight.leaves
            chains.setdefault(traced.names[leaf], []).append(chain)
    places: list[tuple[Any, _Place]] = []
    reasons: dict[str, str] = {}
    for path in traced.names:
        products = traced.sites.products(path)
        if not is_compressed(small.get(path)) or not products:
            continue
        own = chains.get(path, [])
        if len(products) > 1 or len(own) != 1:
            reasons[path] = "it is in several products, in a loop or in a branch"
            continue
        made = _place(traced, affine, own[0], path, small)
        if isinstance(made, str):
            reasons[path] = made
        else:
            places.append((own[0].location, made))
    return [place for _, place in sorted(places, key=lambda each: each[0])], reasons


def _place(
    traced: Traced, affine: Affine, chain: Chain, path: str, small: Mapping[str, Any]
) -> _Place | str:
    """The bias of one product, or why there is none."""
    outputs = leaf_axes(traced.sites.of(path)).output
    shape = traced.sites.of(path)[0].shape
    views = traced.uses[chain.location].views[chain.operand]
    read = [
        part
        for view in views
        for _, axis in chain.channels
        for part in view.dims[axis]
        if part.size > 1
    ]
    wide = [axis for axis in outputs if shape[axis] > 1]
    if len(views) != 1 or sorted(part.axis for part in read) != wide:
        return "its output channels are not all read as they are"
    if any(part.size != shape[part.axis] for part in read):
        return "only a part of it is in the product"
    order = tuple(wide.index(part.axis) for part in read)
    sizes = tuple(shape[axis] for axis in wide)
    values = Values(traced.leaves)
    factor = np.ones(chain.sizes)
    for step in chain.steps:
        if step.scales:
            factor = factor * step.vector(values)
            continue
        if len(step.by.leaves) != 1:
            continue
        (leaf,) = step.by.leaves
        name = traced.names[leaf]
        alone = affine.used.get(leaf, frozenset()) == {step.location}
        if not alone or is_compressed(small.get(name)):
            continue
        entries = _entries(traced, step, leaf, chain.sizes)
        if entries is not None:
            return _Place(path, name, order, sizes, factor, entries, step.sign)
    return "no leaf is added to its result channel by channel, and only there"


def _entries(
    traced: Traced, step: AffineStep, leaf: int, sizes: tuple[int, ...]
) -> Host | None:
    """Which entry of a leaf each channel reads; None if it is not read as it is."""
    struct = traced.sites.leaves[leaf][1]
    if not jnp.issubdtype(struct.dtype, jnp.floating) or struct.size != np.prod(sizes):
        return None

    def read(value: Host) -> Host:
        leaves = list(traced.leaves)
        leaves[leaf] = jnp.asarray(value.reshape(struct.shape), struct.dtype)
        return np.broadcast_to(step.sign * step.vector(Values(leaves)), sizes)

    if np.any(read(np.zeros(struct.size))):
        return None
    # Digit by digit, as any dtype holds them.
    numbers, entries = np.arange(struct.size), np.zeros(sizes, int)
    for digit in (64**n for n in range(4) if 64**n <= max(struct.size, 1)):
        entries += digit * np.rint(read(numbers // digit % 64)).astype(int)
    whole = np.array_equal(np.sort(entries, axis=None), numbers)
    return entries if whole else None

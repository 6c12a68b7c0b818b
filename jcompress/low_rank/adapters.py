"""Adapters: train two thin matrices beside a weight that stays as it is."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion import convert_leaves, resolve_specs
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.rules import Rules
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors import Adapted, QTensor, is_compressed
from jcompress.tensors.axes import Axes, matrix_shape, to_matrix
from jcompress.tensors.base import CompressedTensor
from jcompress.tensors.formats import PerChannel, PerGroup, PerTensor, Weights
from jcompress.tensors.low_rank import dense_factor

Spec = TypeVar("Spec")

Adapters = dict[str, dict[str, jax.Array]]
"""The trainable factors `down` and `up` of each adapted leaf, by its name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """An adapter: `W + (alpha / rank) up down`, of which `up` and `down` are trained.

    Attributes:
        rank: the size between the two factors.
        alpha: the strength; None is `rank`, so that the factor before the product is 1.
        dtype: of the factors.

    Raises:
        ValueError: `rank` is below 1, `alpha` is 0 or not finite, or `dtype` is no
            float dtype.

    References:
        Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section
        4.1.
    """

    rank: int = 8
    alpha: float | None = None
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        rank = self.rank
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ValueError(f"Lora: rank is a number of at least 1, not {rank!r}")
        alpha = self.alpha
        if alpha is not None and (not math.isfinite(alpha) or not alpha):
            raise ValueError(f"Lora: alpha is finite and not 0, not {alpha!r}")
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise ValueError(f"Lora: dtype is one of floats, not {self.dtype!r}")


def add_adapters(
    params: Any,
    rules: Rules[Lora],
    *,
    sites: Sites,
    key: jax.Array,
    original: Any = None,
) -> Any:
    """Put adapters on weights, dense or compressed, for `compressed` to run.

    A matched leaf becomes the `base` of an `Adapted`. `down` is drawn from a normal
    distribution of variance 1 / K and `up` is 0, so that the function is unchanged at
    first. With `original` the two start as the best product of their rank for what
    compression took: `original - base`.

    `take_adapters` gives what to train, `put_adapters` puts it back inside of the
    loss, `merge_adapters` makes plain leaves of the result. Works under `jit` too.

    Args:
        params: the parameters.
        rules: pairs of a predicate and a `Lora`.
        sites: the sites of the function that will use the tree, with the same names.
        key: a random key.
        original: the tree of dense weights that `params` was compressed from.

    Returns:
        A tree of the same structure but for the adapted leaves.

    Raises:
        TypeError: the rules are malformed, or a spec is no `Lora`.
        MismatchError: a rule matches no weight; a matched leaf is absent, of another
            shape than at its sites, not of floats, adapted already, or stored for other
            axes;
            its base has ranges of several products; the rank exceeds its matrix; or
            `original` has no dense leaf of this name and shape.

    References:
        Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs"; Li et al.
        2023, "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models",
        algorithm 1 with one step, for `original`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.execution import compressed
        >>> from jcompress.quantization import Quantize, Weights, quantize
        >>> from jcompress.low_rank.adapters import (
        ...     Lora, add_adapters, put_adapters, take_adapters)
        >>> from jcompress.sites import find_sites
        >>> model = lambda params, x: x @ params["w"]
        >>> params, x = {"w": jnp.eye(8)}, jnp.ones((1, 8))
        >>> sites = find_sites(model, params, x)
        >>> four = [("w", Quantize(weights=Weights(bits=4)))]
        >>> small = quantize(params, four, sites=sites)
        >>> tree = add_adapters(
        ...     small, [("w", Lora(rank=2))], sites=sites, key=jax.random.key(0))
        >>> def loss(adapters):
        ...     return compressed(model)(put_adapters(tree, adapters), x).sum()
        >>> jax.grad(loss)(take_adapters(tree))["w"]["up"].shape
        (8, 2)
    """
    resolved = resolve_specs(
        rules, sites, Lora, transform="add_adapters", usage="Lora(rank=...)"
    )
    wholes = None if original is None else dict(named_leaves(original))
    keys = dict(
        zip(resolved.leaves, jax.random.split(key, len(resolved.leaves)), strict=True)
    )

    def convert(path: str, base: Any, spec: Lora) -> Adapted:
        return _adapted(path, base, spec, sites, keys[path], wholes)

    return convert_leaves(
        "add_adapters",
        params,
        resolved.leaves,
        convert,
        sites=sites,
        accept=(CompressedTensor,),
    )


def take_adapters(tree: Any) -> Adapters:
    """The trainable factors of every adapted leaf, as a tree of their own for optax.

    Args:
        tree: what `add_adapters` returned.

    Returns:
        For each adapted leaf, by name, its `down` [*S, R, K] and `up` [*S, N, R].

    Raises:
        MismatchError: no leaf is adapted.
    """
    found: Adapters = {
        name: {"down": leaf.down, "up": leaf.up}
        for name, leaf in named_leaves(tree)
        if isinstance(leaf, Adapted)
    }
    if not found:
        raise MismatchError(
            "take_adapters: no leaf of the tree is adapted; add_adapters does that"
        )
    return found


def put_adapters(tree: Any, adapters: Mapping[str, Mapping[str, jax.Array]]) -> Any:
    """The tree with other trainable factors; what is frozen stays.

    Args:
        tree: what `add_adapters` returned.
        adapters: what `take_adapters` returned, trained.

    Raises:
        MismatchError: the names are not those of the adapted leaves, or an array is
            absent, of another shape or no float.
    """
    names = [n for n, leaf in named_leaves(tree) if isinstance(leaf, Adapted)]
    absent = [name for name in names if name not in adapters]
    if absent:
        raise MismatchError(
            f"put_adapters: {absent[0]!r} has no adapter; adapted are: "
            f"{', '.join(names)}"
        )

    def place(name: str, leaf: Any, part: Mapping[str, jax.Array]) -> Adapted:
        if not isinstance(leaf, Adapted):
            raise MismatchError(
                f"put_adapters: {name!r} has an adapter but no adapted leaf; adapted "
                f"are: {', '.join(names)}"
            )
        try:
            return dataclasses.replace(leaf, down=part["down"], up=part["up"])
        except KeyError as error:
            raise MismatchError(
                f"put_adapters: the adapter of {name!r} has no {error}, only "
                f"{sorted(part)}"
            ) from None
        except ValueError as error:
            raise MismatchError(f"put_adapters: {name!r}: {error}") from None

    return _convert_adapted("put_adapters", tree, adapters, place)


def merge_adapters(tree: Any, *, requantize: bool = False) -> Any:
    """Make plain leaves of the adapted ones.

    Args:
        tree: a tree with adapted leaves.
        requantize: whether a leaf with a quantized base is rounded to the format of
            that base again, which costs accuracy; otherwise it becomes dense.

    Returns:
        The tree with a dense array, or a `QTensor`, for each adapted leaf.

    Raises:
        MismatchError: no leaf is adapted; or `requantize`, and a base is compressed but
            not quantized, so that the sum would not fit its storage.
    """

    def merged(name: str, leaf: Adapted, _: Any) -> Any:
        dense = leaf.dense()
        if not requantize or not is_compressed(leaf.base):
            return dense
        if not isinstance(leaf.base, QTensor):
            raise MismatchError(
                f"merge_adapters: the base of {name!r} is a "
                f"{type(leaf.base).__name__}, whose storage does not fit the sum; "
                "merge without requantize, then compress the dense leaf again"
            )
        return _requantized(dense, leaf.base)

    return _convert_adapted("merge_adapters", tree, take_adapters(tree), merged)


def _convert_adapted(
    transform: str,
    tree: Any,
    adapters: Mapping[str, Spec],
    convert: Callable[[str, Any, Spec], Any],
) -> Any:
    """Convert the leaves that adapters name, of whatever shapes and dtypes."""
    return convert_leaves(
        transform,
        tree,
        adapters,
        convert,
        source="the adapters",
        accept=(CompressedTensor,),
        dtypes=None,
    )


def _adapted(
    path: str,
    base: Any,
    spec: Lora,
    sites: Sites,
    key: jax.Array,
    originals: Mapping[str, Any] | None,
) -> Adapted:
    uses = sites.of(path)
    shape, axes = uses[0].shape, leaf_axes(uses)
    base = _checked(path, base, axes)
    stacks, outputs, inputs = matrix_shape(shape, axes)
    if spec.rank > min(outputs, inputs):
        raise MismatchError(
            f"add_adapters: rank {spec.rank} exceeds the matrix of {path!r}, "
            f"{outputs} outputs by {inputs} inputs; take at most "
            f"{min(outputs, inputs)}"
        )
    alpha = float(spec.rank if spec.alpha is None else spec.alpha)
    if originals is None:
        down = jax.random.normal(key, (*stacks, spec.rank, inputs), spec.dtype)
        down = down * jnp.asarray(1 / math.sqrt(inputs), spec.dtype)
        up = jnp.zeros((*stacks, outputs, spec.rank), spec.dtype)
    else:
        lost = _lost(path, base, originals)
        down, up = _best(to_matrix(lost, axes), spec.rank, alpha / spec.rank)
    return Adapted(
        base=base,
        down=down.astype(spec.dtype),
        up=up.astype(spec.dtype),
        alpha=alpha,
        shape=shape,
        dtype=base.dtype,
        stack_axes=axes.stack,
        output_axes=axes.output,
        input_axes=axes.input,
    )


def _checked(path: str, base: Any, axes: Axes) -> Any:
    if isinstance(base, Adapted):
        raise MismatchError(
            f"add_adapters: {path!r} has an adapter already; merge_adapters makes it "
            f"plain, a rule ({path!r}, None) leaves it alone"
        )
    if not is_compressed(base):
        return jnp.asarray(base)
    if getattr(base, "axes", axes) != axes:
        raise MismatchError(
            f"add_adapters: {path!r} is stored with {getattr(base, 'axes', None)} and "
            f"used with {axes}; give the sites of the function that will use it"
        )
    if len(getattr(base, "input_ranges", ())) > 1:
        raise MismatchError(
            f"add_adapters: {path!r} quantizes the inputs of several products with a "
            "range for each; quantize it with range=Dynamic(), or exclude it by a rule "
            f"({path!r}, None)"
        )
    return base


def _lost(path: str, base: Any, originals: Mapping[str, Any]) -> jax.Array:
    whole = originals.get(path)
    if whole is None or is_compressed(whole) or np.shape(whole) != tuple(base.shape):
        found = "absent" if whole is None else f"a {type(whole).__name__}"
        if whole is not None and not is_compressed(whole):
            found = str(list(np.shape(whole)))
        raise MismatchError(
            f"add_adapters: {path!r} is {found} in original, not the dense array "
            f"{list(base.shape)} that was compressed"
        )
    dense = dense_factor(base).astype(jnp.float32)
    return jnp.asarray(whole).astype(jnp.float32) - dense


def _best(matrix: jax.Array, rank: int, scale: float) -> tuple[jax.Array, jax.Array]:
    """`down` and `up` with the least `|matrix - scale up down|`."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    size = jnp.sqrt(values[..., :rank] * np.float32(1 / abs(scale)))
    down = right[..., :rank, :] * size[..., :, None]
    up = left[..., :, :rank] * size[..., None, :]
    return down, up * np.float32(math.copysign(1, scale))


def _requantized(dense: jax.Array, base: QTensor) -> QTensor:
    groups = base.scales.shape[-1]
    granularity: PerTensor | PerChannel | PerGroup = PerChannel()
    if groups > 1:
        granularity = PerGroup(base.matrix_shape[-1] // groups)
    elif base.scales.shape[-2] == 1 and base.matrix_shape[-2] > 1:
        granularity = PerTensor()
    spec = Weights(
        bits=base.bits,
        symmetric=base.zeros is None,
        floating=base.floating,
        granularity=granularity,
    )
    return QTensor.quantize(
        dense,
        base.axes,
        spec,
        activation=base.activation,
        input_ranges=base.input_ranges,
    )

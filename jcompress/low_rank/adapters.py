"""Adapters: two thin matrices to train beside a weight that stays as it is."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion import convert_leaves, resolve_specs
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.rules import Rules
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors import Adapted, is_compressed
from jcompress.tensors.axes import Axes, matrix_shape, to_matrix
from jcompress.tensors.base import CompressedTensor
from jcompress.tensors.low_rank import dense_factor


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
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import Quantize, Weights, quantize
        >>> from jcompress.low_rank import (
        ...     Lora, add_adapters, put_adapters, take_adapters)
        >>> from jcompress.sites import find_sites
        >>> model = lambda params, x: x @ params["w"]
        >>> params, x = {"w": jnp.eye(8)}, jnp.ones((1, 8))
        >>> sites = find_sites(model, params, x)
        >>> four = [("w", Quantize(weights=Weights(format=Int(4))))]
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
    if len(getattr(base, "input_scales", ())) > 1:
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

"""Sensitivity without running the model for each format: from second derivatives."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.conversion import replace_leaves
from jcompress.leaves import named_leaves
from jcompress.sensitivity.trials import Measure, Trial
from jcompress.sites import Axes, Sites, leaf_axes
from jcompress.statistics.moments import in_groups, moments_of
from jcompress.tensors.axes import to_matrix


@dataclasses.dataclass(frozen=True)
class LayerError(Measure):
    """The error of each layer's outputs, relative to them; the model is not run.

    `tr((W - W') H (W - W')^T) / tr(W H W^T)` with H the second moments of the inputs:
    one number for all layers to compare, as if all outputs counted alike.

    Attributes:
        moments: float32 [*S, K, K] for each leaf, as `observe(fn, rules,
            SecondMoments())` gives them; of a convolution in G > 1 groups
            [*S, G, K, K].
    """

    moments: Mapping[str, jax.Array]

    def each(
        self, params: Any, trials: Iterator[Trial], sites: Sites
    ) -> Iterator[float]:
        """The relative squared error of each trial."""
        last = None
        for trial in trials:
            path = trial.path
            leaf, small = trial.single("LayerError")
            if path != last:
                (h,) = moments_of(
                    "LayerError",
                    self.moments,
                    {path: "LayerError"},
                    sites,
                    grouped=True,
                ).values()
                last = path
            axes = leaf_axes(sites.of(path))
            yield float(_relative(leaf, small, jnp.asarray(h), axes))


@functools.partial(jax.jit, static_argnums=3)
def _relative(
    leaf: jax.Array, small: jax.Array, moments: jax.Array, axes: Axes
) -> jax.Array:
    first, second = (to_matrix(x, axes).astype(jnp.float32) for x in (leaf, small))

    def size(w: jax.Array) -> jax.Array:
        w = in_groups(w, moments)
        return jnp.sum(jnp.matmul(w, moments, precision="highest") * w)

    whole = size(first)
    return size(first - second) / jnp.where(whole > 0, whole, 1)


@dataclasses.dataclass(frozen=True)
class HessianError(Measure):
    """The mean second derivative of a loss by a leaf, times the error of its weights.

    `tr(H) / n * |W - W'|^2`, with the trace of the Hessian estimated from products of
    it with random signs (Hutchinson), all leaves at once. It costs one compilation, and
    two gradients for each draw and batch, whatever the number of formats.

    Attributes:
        loss: takes the tree and the arguments of a batch, and gives a number.
        batches: the arguments, one tuple for each batch, of the same shapes.
        key: a key of `jax.random`.
        draws: of random signs, for each batch.

    Raises:
        ValueError: there is no batch, or no draw.

    References:
        Dong et al. 2020, "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural
        Networks".
    """

    loss: Callable[..., jax.Array]
    batches: Sequence[tuple[Any, ...]]
    key: jax.Array
    draws: int = 8

    def __post_init__(self) -> None:
        if not self.batches or self.draws < 1:
            raise ValueError(
                f"HessianError: {len(self.batches)} batches and {self.draws} draws; "
                "it takes at least one of each"
            )

    def traces(self, params: Any) -> dict[str, float]:
        """The estimated trace of the Hessian of the mean loss, by leaf of floats."""
        named = dict(named_leaves(params))
        free = {
            path: leaf
            for path, leaf in named.items()
            if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        }

        def products(free: Any, key: jax.Array, *batch: Any) -> Any:
            def gradient(free: Any) -> Any:
                return self.loss(replace_leaves(params, free), *batch)

            keys = dict(zip(free, jax.random.split(key, len(free)), strict=True))
            signs = {
                path: jax.random.rademacher(keys[path], leaf.shape, leaf.dtype)
                for path, leaf in free.items()
            }
            _, curved = jax.jvp(jax.grad(gradient), (free,), (signs,))
            return {
                path: jnp.sum((signs[path] * curved[path]).astype(jnp.float32))
                for path in free
            }

        run = jax.jit(products)
        total = dict.fromkeys(free, 0.0)
        for n, batch in enumerate(self.batches):
            for draw in range(self.draws):
                key = jax.random.fold_in(self.key, n * self.draws + draw)
                for path, value in run(free, key, *batch).items():
                    total[path] += float(value)
        return {p: t / len(self.batches) / self.draws for p, t in total.items()}

    def each(
        self, params: Any, trials: Iterator[Trial], sites: Sites
    ) -> Iterator[float]:
        """The estimate for each trial; 0 where the mean second derivative is below."""
        traces = self.traces(params)
        for trial in trials:
            leaf, small = trial.single("HessianError")
            mean = max(0.0, traces[trial.path]) / max(1, leaf.size)
            change = (leaf - small).astype(jnp.float32)
            yield mean * float(jnp.sum(jnp.square(change)))

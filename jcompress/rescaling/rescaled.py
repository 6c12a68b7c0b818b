"""What transforms that move scales give: new parameters, checked, and what was done."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import path_name
from jcompress.rescaling._unknowns import Floats
from jcompress.rescaling.scalable import ScalableGroup, Scaling
from jcompress.tensors import is_compressed
from jcompress.tracing.interpreter import Program
from jcompress.tracing.trace import Traced, trace


@dataclasses.dataclass(frozen=True)
class Rescaled:
    """Parameters of the same function, with scales moved; `print` tells what was done.

    Attributes:
        params: the new tree, for the function as it is.
        scaled: the groups that were scaled.
        skipped: for each weight of a product that was left alone, why.
        factors: for each scaled weight by what its inputs were divided and its columns
            multiplied: float32 [*S, K]; [*S, G, K] of a convolution with G > 1 groups.
        error: by how much the outputs differ on the given arguments, relative to the
            largest.
    """

    params: Any
    scaled: tuple[ScalableGroup, ...]
    skipped: Mapping[str, str]
    factors: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]
    error: float

    def __str__(self) -> str:
        lines = []
        for group in self.scaled:
            every = [self.factors[path] for path in group.consumers]
            low = min(float(one.min()) for one in every)
            high = max(float(one.max()) for one in every)
            lines.append(f"{group}; factors {low:.3g} to {high:.3g}")
        lines += [f"{path} stays: {why}" for path, why in self.skipped.items()]
        return "\n".join([*lines, f"largest relative difference {self.error:.1e}"])

    def moments(self, moments: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Second moments [*S, K, K] of the inputs as they are now, without new data.

        Of a convolution in G > 1 groups they are [*S, G, K, K].

        Args:
            moments: by weight, as `observe(fn, rules, SecondMoments())` gave them for
                the parameters before.
        """
        return {
            path: jnp.asarray(value)
            / (self._factor(path)[..., :, None] * self._factor(path)[..., None, :])
            for path, value in moments.items()
        }

    def maxima(self, maxima: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Largest absolute values, or means of them, [*S, K] of the inputs as they are
        now.

        Args:
            maxima: by weight, of the parameters before.
        """
        return {
            path: jnp.asarray(value) / self._factor(path)
            for path, value in maxima.items()
        }

    def _factor(self, path: str) -> jax.Array:
        if path not in self.factors:
            return jnp.ones(1, jnp.float32)
        return jnp.asarray(self.factors[path])


def traced_for(transform: str, fn: Any, params: Any, args: Any, kwargs: Any) -> Traced:
    """Trace a function of arrays that have values, for products without rounding.

    Raises:
        ValueError: an array is abstract or traced.
    """
    with jax.default_matmul_precision("highest"):
        traced = trace(fn, params, args, kwargs)
    named = zip(traced.names, traced.leaves, strict=True)
    given = [*named, *(("an argument", x) for x in traced.data)]
    for name, leaf in given:
        for part in jax.tree.leaves(leaf):
            if isinstance(part, jax.core.Tracer | jax.ShapeDtypeStruct):
                kind = type(part).__name__
                raise ValueError(
                    f"{transform}: {name} has no values ({kind}), and the function is "
                    "evaluated before and after; give arrays, outside of jit"
                )
    return traced


def finished(
    transform: str,
    scaling: Scaling,
    params: Any,
    values: Floats,
    skipped: Mapping[str, str],
    tolerance: float,
    groups: Sequence[ScalableGroup] | None = None,
) -> Rescaled:
    """Scale the leaves, and check that the function stays the same.

    Args:
        transform: the caller's name, for the errors.
        scaling: the factors that the function leaves free.
        params: the tree.
        values: the logarithms of the factors, by unknown.
        skipped: why weights were left alone.
        tolerance: the largest relative difference of outputs.
        groups: the groups that may have been scaled; all by default.

    Raises:
        MismatchError: nothing was scaled.
        ValueError: the outputs differ by more than the tolerance.
    """
    factors, scaled = {}, []
    for group in scaling.inputs if groups is None else groups:
        made = {path: scaling.factors(path, values) for path in group.consumers}
        if any((one != 1).any() for one in made.values()):
            scaled.append(group)
            factors.update(made)
    if not scaled:
        reasons = "; ".join(f"{path}: {why}" for path, why in skipped.items())
        raise MismatchError(
            f"{transform}: nothing to scale. "
            + (reasons or "all factors that would be chosen are 1")
        )
    traced = scaling.traced
    new: dict[str, Any] = {}
    for number, name in enumerate(traced.names):
        logs = scaling.found.log_factor(number, values)
        if np.any(logs != 0):
            leaf = traced.leaves[number]
            # What no float32 holds is found when the function is checked.
            with np.errstate(over="ignore", under="ignore"):
                one = np.asarray(leaf).astype(np.float64) * np.exp(logs)
                new[name] = jnp.asarray(one.astype(np.float32)).astype(leaf.dtype)
    error = checked(transform, traced, new, tolerance)
    return Rescaled(
        replaced(params, new),
        tuple(scaled),
        {path: why for path, why in skipped.items() if path not in factors},
        {path: one.astype(np.float32) for path, one in factors.items()},
        error,
    )


def replaced(params: Any, new: Mapping[str, Any]) -> Any:
    """The tree with some leaves, by name, replaced."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: new.get(path_name(path), leaf),
        params,
        is_leaf=is_compressed,
    )


def checked(
    transform: str, traced: Traced, new: Mapping[str, Any], tolerance: float
) -> float:
    """How much the outputs change relative to the largest, if it is little enough.

    Raises:
        ValueError: it is more than the tolerance.
    """
    program = Program(traced=traced, handlers={})
    run: Callable[[Sequence[Any], Sequence[Any]], list[Any]] = jax.jit(
        lambda leaves, data: program(leaves, data)[0]
    )
    after = [
        new.get(name, leaf)
        for name, leaf in zip(traced.names, traced.leaves, strict=True)
    ]
    worst = 0.0
    outs = zip(run(traced.leaves, traced.data), run(after, traced.data), strict=True)
    loosest = tolerance
    for old, made in outs:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            continue
        a, b = (np.asarray(x).astype(np.float64) for x in (old, made))
        finite = np.isfinite(a)
        if (finite != np.isfinite(b)).any():
            raise ValueError(
                f"{transform}: the outputs are finite at other places than before; "
                "this function cannot be rescaled at these numbers"
            )
        difference = np.abs(np.where(finite, a, 0) - np.where(finite, b, 0))
        largest = float(np.abs(np.where(finite, a, 0)).max(initial=0.0))
        if difference.max(initial=0.0) > 0:
            worst = max(worst, float(difference.max()) / max(largest, 1e-30))
        loosest = max(loosest, 8 * float(jnp.finfo(old.dtype).eps))
    for leaf in new.values():
        loosest = max(loosest, 8 * float(jnp.finfo(leaf.dtype).eps))
    if not worst <= loosest:
        raise ValueError(
            f"{transform}: the outputs differ by {worst:.2e} of the largest, more than "
            f"{loosest:.1e}; `tolerance` allows more"
        )
    return worst

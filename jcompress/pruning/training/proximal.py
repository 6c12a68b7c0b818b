"""Penalties that make weights exactly zero while a model trains."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jcompress.conversion import convert_leaves, find_leaves, resolve_specs
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves, path_name
from jcompress.pruning.patterns import NM, Pattern, Unstructured
from jcompress.pruning.spec import PRUNABLE, Schedule
from jcompress.rules import Rules, matches_name
from jcompress.sites import Sites, leaf_axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lasso:
    """How strongly weights of a rule are pulled to zero, and which go together.

    Attributes:
        strength: the factor of the penalty in the loss, above 0, or a schedule of it.
            The penalty is the sum of the absolute values; for a pattern of groups the
            sum over the groups of their Euclidean norms times the square roots of
            their sizes (group lasso).
        pattern: what becomes zero together. `NM` has no such groups.

    Raises:
        ValueError: a strength that is not above 0; the pattern `NM`.
    """

    strength: float | Schedule
    pattern: Pattern = dataclasses.field(default_factory=Unstructured)

    def __post_init__(self) -> None:
        if not callable(self.strength) and not self.strength > 0:
            raise ValueError(f"Lasso: strength is above 0, not {self.strength!r}")
        if isinstance(self.pattern, NM):
            raise ValueError(
                f"Lasso: {self.pattern!r} says how many of a group stay, and a penalty "
                "cannot; use Prune(pattern=NM(...)) or a pattern of whole groups"
            )


class ProximalState(NamedTuple):
    """State of `proximal`.

    Attributes:
        inner: state of the inner optimizer.
        step: updates done so far, int32.
    """

    inner: Any
    step: jax.Array


def proximal(
    inner: optax.GradientTransformation,
    rules: Rules[Lasso],
    *,
    sites: Sites,
    learning_rate: float | Schedule,
) -> optax.GradientTransformationExtraArgs:
    """Train with `inner` under an L1 or group penalty, by proximal steps.

    After the step of `inner` the weights are moved towards zero by the learning rate
    times the strength, and are exact zeros once they would cross it; with p the result
    of `inner` and t that product,

        single weights   sign(p) max(|p| - t, 0)
        groups           p max(1 - t sqrt(n) / |p|, 0), n the size of the group

    A gradient of the penalty itself would leave small numbers everywhere. Nothing may
    follow it in an `optax.chain`.

    Args:
        inner: the optimizer, without the penalty.
        rules: ordered pairs of a predicate and a `Lasso`; the first match wins.
        sites: the sites of the function that is trained, for the tree that the
            optimizer gets.
        learning_rate: that of `inner`, or a schedule.

    Returns:
        The transformation; its state is a `ProximalState`. `update` needs `params`.

    Raises:
        MismatchError: a rule matches nothing or does not fit its leaves.
        ValueError: an `update` without parameters.

    References:
        Parikh & Boyd 2014, "Proximal Algorithms", sections 4.2 and 6.5; Yuan & Lin
        2006, "Model selection and estimation in regression with grouped variables".
    """
    resolved = resolve_specs(
        rules,
        sites,
        Lasso,
        transform="proximal",
        usage="Lasso(strength=...) or None",
        dtypes=PRUNABLE,
    )
    axes = {path: leaf_axes(sites.of(path)) for path in resolved.leaves}
    for path, spec in resolved.leaves.items():
        try:
            spec.pattern.check(path, sites.of(path)[0].shape, axes[path])
        except MismatchError as error:
            raise MismatchError(f"proximal: {error}") from None
    wrapped = optax.with_extra_args_support(inner)

    def init(params: Any) -> ProximalState:
        return ProximalState(wrapped.init(params), jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: ProximalState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ProximalState]:
        if params is None:
            raise ValueError(
                "proximal: update needs the parameters: "
                "optimizer.update(gradients, state, params)"
            )
        weights = find_leaves(
            "proximal", params, resolved.leaves, sites=sites, dtypes=PRUNABLE
        )
        updates, inner_state = wrapped.update(
            updates, state.inner, params, **extra_args
        )
        rate = _at(learning_rate, state.step)

        def shrink(path: str, change: jax.Array, spec: Lasso) -> jax.Array:
            weight = weights[path]
            moved = weight + change.astype(weight.dtype)
            distance = rate * _at(spec.strength, state.step)
            factor = _factor(spec.pattern, moved, axes[path], distance)
            new = (moved * factor.astype(moved.dtype)).astype(weight.dtype)
            return jnp.where(factor > 0, new - weight, -weight)

        updates = convert_leaves(
            "proximal",
            updates,
            resolved.leaves,
            shrink,
            source="the parameters",
            dtypes=None,
        )
        return updates, ProximalState(inner_state, optax.safe_increment(state.step))

    return optax.GradientTransformationExtraArgs(init, update)


def add_l1(
    strength: float | Schedule, leaves: str
) -> optax.GradientTransformationExtraArgs:
    """Add the gradient of an L1 penalty on leaves that no product uses.

    For the scales of batch normalisation ("network slimming"): channels whose scale
    ends near zero can be removed with the batch-norm score and `jcompress.shrinking`.
    It goes before the optimizer, `optax.chain(add_l1(1e-4, "**/scale"), sgd)`.

    Args:
        strength: the factor of the penalty in the loss, or a schedule of it.
        leaves: a glob of their names, as in rules: `"**/scale"`.

    Raises:
        ValueError: a strength that is not above 0.
        MismatchError: in `init`, no leaf has such a name; the error lists the names.

    References:
        Liu et al. 2017, "Learning Efficient Convolutional Networks through Network
        Slimming", equation 1.
    """
    if not callable(strength) and not strength > 0:
        raise ValueError(f"add_l1: strength is above 0, not {strength!r}")

    def init(params: Any) -> optax.ScaleByScheduleState:
        names = [name for name, _ in named_leaves(params)]
        if names and not any(matches_name(leaves, name) for name in names):
            raise MismatchError(
                f"add_l1: no leaf is named {leaves!r}; the tree has "
                + ", ".join(names[:12])
            )
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: optax.ScaleByScheduleState, params: Any = None, **_: Any
    ) -> tuple[Any, optax.ScaleByScheduleState]:
        if params is None:
            raise ValueError(
                "add_l1: update needs the parameters: "
                "optimizer.update(gradients, state, params)"
            )
        force = _at(strength, state.count)

        def add(path: Any, gradient: jax.Array, weight: jax.Array) -> jax.Array:
            if not matches_name(leaves, path_name(path)):
                return gradient
            return gradient + (force * jnp.sign(weight)).astype(gradient.dtype)

        added = jax.tree_util.tree_map_with_path(add, updates, params)
        count = optax.safe_increment(state.count)
        return added, optax.ScaleByScheduleState(count=count)

    return optax.GradientTransformationExtraArgs(init, update)


def _at(value: float | Callable[[Any], Any], step: jax.Array) -> jax.Array:
    return jnp.asarray(value(step) if callable(value) else value, jnp.float32)


def _factor(
    pattern: Pattern, moved: jax.Array, axes: Any, distance: jax.Array
) -> jax.Array:
    """What each weight is multiplied with, from 0 to 1; float32 of the leaf's shape."""
    size = jnp.abs(moved).astype(jnp.float32)
    # The mean of the squares of each group: |p|^2 / n.
    rows = pattern.rows(size * size, axes)
    norm = jnp.sqrt(rows)
    kept = jnp.where(norm > 0, 1 - distance / jnp.where(norm > 0, norm, 1), 0)
    factor: jax.Array = pattern.spread(jnp.maximum(kept, 0), moved.shape, axes)
    return factor

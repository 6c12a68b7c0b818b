"""Pruning during training, as an optax transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jcompress.conversion import convert_leaves
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.pruning._host import on_host
from jcompress.pruning.masks import apply_by_name, place_masks
from jcompress.pruning.ranking import choose
from jcompress.pruning.scores import score_by_magnitude
from jcompress.pruning.spec import Prune, PruningPlan, Sparsity, make_plan
from jcompress.rules import Rules
from jcompress.sites import Sites
from jcompress.tensors import is_compressed


class PruneState(NamedTuple):
    """State of `prune`.

    Attributes:
        inner: state of the inner optimizer.
        masks: a tree like the parameters: Boolean arrays, True for keep, at the pruned
            leaves and None at the others.
        step: updates done so far, int32.
        returned: how many weights that had been removed were not zero when an update
            began, the most so far, int32. Above 0 something changes the updates after
            `prune`, or the parameters between two updates; `summarize` and `to_sparse`
            raise if the parameters that they get hold such weights.
    """

    inner: Any
    masks: Any
    step: jax.Array
    returned: jax.Array


def prune(
    inner: optax.GradientTransformation,
    rules: Rules[Prune],
    *,
    sites: Sites,
    sparsity: Sparsity | None = None,
    every: int | jax.Array = 1,
) -> optax.GradientTransformationExtraArgs:
    """Train with `inner`, and remove the weights of least magnitude on the way.

    After each `optax.apply_updates` the removed weights are exact zeros; nothing has
    to be called after the step. With m the masks, p the parameters and g the
    gradients, one update is

        m   = m and make_masks(|p|)     at every `every`-th step of a schedule
        u   = inner.update(m * g)
        out = u where m else -p

    `inner` gets the gradient of the masked function, so that clipping and adaptive
    scales that mix entries see only what is left. Momentum and weight decay cannot
    move a removed weight, as `out` ignores what they say of it. Removed weights stay
    removed, as in Zhu & Gupta: a schedule that falls has no effect.

    Put everything that changes the update (learning rate, decay, clipping) inside
    `inner`, `prune(optax.chain(...), ...)`: whatever follows `prune` in an
    `optax.chain` would spoil the zeros. The state counts the weights that came back
    so (`PruneState.returned`). `optax.lookahead(prune(...), ...)` brings them back too:
    its slow weights are means with what they were before they were pruned; begin with
    `optax.LookaheadParams.init_synced(apply_masks(params, masks))`, or finish with
    `apply_masks(params, state.masks)`. If all sparsities are numbers, the masks are
    chosen once, in `init`, from the parameters given there. Ranking costs a sort of
    the weights: with a schedule, 100 is a usual `every` for runs of some ten thousand
    steps. Under `optax.inject_hyperparams` keep the sparsity exact with
    `hyperparam_dtype=jnp.float32` if parameters are bfloat16.

    Args:
        inner: the optimizer to train with.
        rules: ordered pairs of a predicate and a `Prune`; the first match wins.
        sites: the sites of the function that is trained, for the tree that the
            optimizer gets: `find_sites(...).below("params")` for Linen's `params`.
        sparsity: for rules that have none of their own.
        every: steps between two choices of masks under a schedule.

    Returns:
        The transformation; its state is a `PruneState`. `update` needs `params`.

    Raises:
        TypeError: a rule carries something else than a `Prune`.
        MismatchError: a rule matches nothing, has no sparsity or does not fit a leaf;
            or, in `init` and `update`, a leaf is missing from the tree.
        ValueError: `every` below 1, or an `update` without parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from jcompress.pruning import Unstructured
        >>> from jcompress.sites import find_sites
        >>> params = {"w": jnp.array([[4.0, -1.0], [2.0, -3.0]])}
        >>> sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 2)))
        >>> rules = [(..., Prune(pattern=Unstructured(), sparsity=0.5))]
        >>> optimizer = prune(optax.sgd(1.0), rules, sites=sites)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({"w": jnp.ones((2, 2))}, state, params)
        >>> optax.apply_updates(params, updates)["w"].tolist()
        [[3.0, 0.0], [0.0, -4.0]]

    References:
        Zhu & Gupta 2017, "To prune, or not to prune: exploring the efficacy of
        pruning for model compression", section 3.
    """
    if isinstance(every, int) and (every < 1 or isinstance(every, bool)):
        raise ValueError(f"prune: every must be at least 1, not {every!r}")
    plan = make_plan(rules, sites, sparsity, "prune")
    wrapped = optax.with_extra_args_support(inner)

    def init(params: Any) -> PruneState:
        start = jnp.zeros((), jnp.int32)
        masks = params
        # optax.tree_map_params calls init with a tree without leaves, in order to see
        # which parts of the state mirror the parameters; update does not accept one.
        if jax.tree.leaves(params):
            weights = plan.find(params)
            masks = place_masks(params, choose(plan, weights, start, by_magnitude=True))
        return PruneState(
            inner=wrapped.init(params), masks=masks, step=start, returned=start
        )

    def update(
        updates: Any, state: PruneState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, PruneState]:
        if params is None:
            raise ValueError(
                "prune: update needs the parameters: "
                "optimizer.update(gradients, state, params)"
            )
        weights = plan.find(params)
        masks = dict(named_leaves(state.masks))
        # Before the first update nothing has been removed. The most is kept, as what
        # comes back at some steps only (lookahead) is zero again after the next update.
        now = jnp.where(state.step > 0, _returned(weights, masks), 0)
        returned = jnp.maximum(state.returned, now)
        if plan.changes:
            due = state.step % every == 0
            masks = jax.lax.cond(
                due,
                lambda old: _fewer(plan, weights, old, state.step),
                lambda old: old,
                masks,
            )
        live = apply_by_name("prune", updates, masks)
        inner_updates, inner_state = wrapped.update(
            live, state.inner, params, **extra_args
        )
        new_state = PruneState(
            inner=inner_state,
            masks=place_masks(params, masks),
            step=optax.safe_increment(state.step),
            returned=returned.astype(jnp.int32),
        )
        return _removing(inner_updates, weights, masks), new_state

    return optax.GradientTransformationExtraArgs(init, update)


LOST = (
    "Nothing may change the updates after prune: write "
    "prune(optax.chain(...), rules, sites=sites), not optax.chain(prune(...), ...). "
    "apply_masks(params, state.masks) makes them zero again"
)
"""What to do about zeros that a training with `prune` lost."""


def check_removed(transform: str, params: Any, state: PruneState) -> None:
    """Raise if weights that `prune` removed are not zero in the parameters.

    Raises:
        MismatchError: some are not; names the first such leaf and how to chain.
    """
    named = dict(named_leaves(params))
    for path, mask in named_leaves(state.masks):
        if mask is None or path not in named or is_compressed(named[path]):
            continue
        back, gone = count_back(named[path], mask)
        if back and int(state.step) > 0:
            raise MismatchError(
                f"{transform}: {back} of the {gone} weights that prune removed from "
                f"{path!r} are not zero. {LOST}."
            )


def count_back(leaf: Any, mask: Any) -> tuple[int, int]:
    """How many weights are not zero that a mask removes, and how many it removes."""
    host, keep = on_host(leaf), on_host(mask)
    if host is None or keep is None:
        return int(jnp.sum((leaf != 0) & ~mask)), int(jnp.sum(~mask))
    back = np.count_nonzero((host != 0) & ~keep)
    return int(back), keep.size - int(np.count_nonzero(keep))


def _returned(weights: dict[str, jax.Array], masks: dict[str, jax.Array]) -> jax.Array:
    """How many weights are not zero that the masks remove; int32."""
    counts = [
        jnp.sum((weights[path] != 0) & ~mask, dtype=jnp.int32)
        for path, mask in masks.items()
        if mask is not None
    ]
    return sum(counts, jnp.zeros((), jnp.int32))


@jax.jit
def _scores(weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
    scores: dict[str, jax.Array] = score_by_magnitude(weights)
    return scores


def _fewer(
    plan: PruningPlan,
    weights: dict[str, jax.Array],
    masks: dict[str, jax.Array],
    step: jax.Array,
) -> dict[str, jax.Array]:
    # What is removed ranks below everything else, a live weight of exactly 0 too.
    lowest = jnp.array(-jnp.inf, jnp.float32)
    scores = {
        path: jnp.where(masks[path], score, lowest)
        for path, score in _scores(weights).items()
    }
    return {
        path: masks[path] & mask for path, mask in choose(plan, scores, step).items()
    }


def _removing(
    updates: Any, weights: dict[str, jax.Array], masks: dict[str, jax.Array]
) -> Any:
    def away(name: str, update: Any, weight: jax.Array) -> jax.Array:
        # An update narrower than its weight could not cancel it.
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.promote_types(update.dtype, weight.dtype)
        removed = -jnp.asarray(weight).astype(dtype)
        return jnp.where(masks[name], jnp.asarray(update).astype(dtype), removed)

    return convert_leaves(
        "prune", updates, weights, away, source="the parameters", dtypes=None
    )

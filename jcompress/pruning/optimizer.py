"""Pruning during training, as an optax transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jcompress.conversion import convert_leaves
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves, path_name
from jcompress.pruning.masks import apply_by_name, place_masks
from jcompress.pruning.ranking import choose
from jcompress.pruning.regrowth import Masks, Regrowth
from jcompress.pruning.scores import TrainingScore, score_by_magnitude
from jcompress.pruning.scores.base import Leaves
from jcompress.pruning.spec import Prune, PruningPlan, Sparsity, make_plan
from jcompress.rules import Rules
from jcompress.sites import Sites


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
        score: state of the `score`; None without one.
    """

    inner: Any
    masks: Any
    step: jax.Array
    returned: jax.Array
    score: Any = None


def prune(
    inner: optax.GradientTransformation,
    rules: Rules[Prune],
    *,
    sites: Sites,
    sparsity: Sparsity | None = None,
    every: int | jax.Array = 1,
    score: TrainingScore | None = None,
    regrow: Regrowth | None = None,
    masks: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Train with `inner`, and remove the weights that matter least on the way.

    After each `optax.apply_updates` the removed weights are exact zeros; nothing has
    to be called after the step. With m the masks, p the parameters and g the
    gradients, one update is

        m   = m and make_masks(score)     at every `every`-th step of a schedule
        u   = inner.update(m * g)
        out = u where m else -p

    The score is |p| if none is given.

    `inner` gets the gradient of the masked function, so that clipping and adaptive
    scales that mix entries see only what is left. Momentum and weight decay cannot
    move a removed weight, as `out` ignores what they say of it. Removed weights stay
    removed, as in Zhu & Gupta: a schedule that falls has no effect. With `regrow` some
    come back, at 0; then the entries of `inner`'s state that mirror them become 0, too.

    Put everything that changes the update (learning rate, decay, clipping) inside
    `inner`, `prune(optax.chain(...), ...)`: whatever follows `prune` in an
    `optax.chain` would spoil the zeros. The state counts the weights that came back
    so (`PruneState.returned`). `optax.lookahead(prune(...), ...)` brings them back too:
    its slow weights are means with what they were before they were pruned; begin with
    `optax.LookaheadParams.init_synced(apply_masks(params, masks))`, or finish with
    `apply_masks(params, state.masks)`. If all sparsities are numbers, the masks are
    chosen once, in `init`, from the parameters given there. Ranking reads the
    weights a dozen times: with a schedule, 100 is a usual `every` for runs of some ten
    thousand steps. Under `optax.inject_hyperparams` keep the sparsity exact with
    `hyperparam_dtype=jnp.float32` if parameters are bfloat16.

    Args:
        inner: the optimizer to train with.
        rules: ordered pairs of a predicate and a `Prune`; the first match wins.
        sites: the sites of the function that is trained, for the tree that the
            optimizer gets: `find_sites(...).below("params")` for Linen's `params`.
        sparsity: for rules that have none of their own.
        every: steps between two choices of masks under a schedule.
        score: how weights are ranked, from the gradients of the steps so far, such as
            `jcompress.pruning.scores.movement()`; nothing is removed before the first
            update then. None takes magnitudes.
        regrow: how removed weights come back, such as `rigl()` of
            `jcompress.pruning.regrowth`; masks then change when it says so.
        masks: what `make_masks` chose by other scores, to begin with, such as those of
            SNIP; the sparsity of the rules should be theirs. With regrowth it is usual
            to begin with masks by chance.

    Returns:
        The transformation; its state is a `PruneState`. `update` needs `params`.

    Raises:
        TypeError: a rule carries something else than a `Prune`.
        MismatchError: a rule matches nothing, has no sparsity or does not fit a leaf;
            regrowth does not fit a pattern, or masks do not fit the rules; or, in
            `init` and `update`, a leaf is missing from the tree.
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
    if regrow is not None:
        regrow.check(plan)
    given = None if masks is None else _given(plan, masks)
    changes = plan.changes or score is not None
    wrapped = optax.with_extra_args_support(inner)

    def first(params: Any, step: jax.Array) -> Masks:
        weights = plan.find(params)
        if given is not None:
            # Copies, as the state may be donated.
            return {path: jnp.array(mask) for path, mask in given.items()}
        if score is not None:
            return {path: jnp.ones(leaf.shape, bool) for path, leaf in weights.items()}
        return choose(plan, weights, step, by_magnitude=True)

    def init(params: Any) -> PruneState:
        start = jnp.zeros((), jnp.int32)
        chosen, scored = params, None
        # optax.tree_map_params calls init with a tree without leaves, in order to see
        # which parts of the state mirror the parameters; update does not accept one.
        if jax.tree.leaves(params):
            chosen = place_masks(params, first(params, start))
            scored = None if score is None else score.init(plan.find(params))
        return PruneState(
            inner=wrapped.init(params),
            masks=chosen,
            step=start,
            # A second array: one that is there twice could not be donated.
            returned=jnp.zeros((), jnp.int32),
            score=scored,
        )

    def update(
        updates: Any, state: PruneState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, PruneState]:
        if params is None:
            raise ValueError(
                "prune: update needs the parameters: "
                "optimizer.update(gradients, state, params)"
            )
        weights, step = plan.find(params), state.step
        old = {
            path: mask for path, mask in named_leaves(state.masks) if path in weights
        }
        # Before the first update nothing has been removed. The most is kept, as what
        # comes back at some steps only (lookahead) is zero again after the next update.
        now = jnp.where(step > 0, _returned(weights, old), 0)
        gradients: Leaves = {}
        scored = state.score
        if score is not None or regrow is not None:
            gradients = plan.find(updates)
        if score is not None:
            scored = score.update(gradients, scored, weights)

        def scores() -> Leaves:
            return _scores(weights) if score is None else score.score(scored, weights)

        masks, inner_state = old, state.inner
        if regrow is not None:
            masks, inner_state = jax.lax.cond(
                regrow.is_due(step),
                lambda: _regrown(
                    inner,
                    inner_state,
                    params,
                    old,
                    regrow.choose(plan, scores(), gradients, old, step),
                ),
                lambda: (dict(old), inner_state),
            )
        elif changes:
            masks = jax.lax.cond(
                step % every == 0,
                lambda: _fewer(plan, scores(), old, step),
                lambda: dict(old),
            )
        live = apply_by_name("prune", updates, masks)
        inner_updates, inner_state = wrapped.update(
            live, inner_state, params, **extra_args
        )
        new_state = PruneState(
            inner=inner_state,
            masks=place_masks(params, masks),
            step=optax.safe_increment(step),
            returned=jnp.maximum(state.returned, now).astype(jnp.int32),
            score=scored,
        )
        return _removing(inner_updates, weights, masks), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _returned(weights: Leaves, masks: Masks) -> jax.Array:
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
    plan: PruningPlan, scores: Leaves, masks: Masks, step: jax.Array
) -> dict[str, jax.Array]:
    # What is removed ranks below everything else, a live weight of exactly 0 too.
    lowest = jnp.array(-jnp.inf, jnp.float32)
    live = {
        path: jnp.where(masks[path], score, lowest) for path, score in scores.items()
    }
    return {path: masks[path] & mask for path, mask in choose(plan, live, step).items()}


def _regrown(
    inner: optax.GradientTransformation,
    state: Any,
    params: Any,
    old: Masks,
    new: Masks,
) -> tuple[dict[str, jax.Array], Any]:
    """The new masks, and the inner state with 0 for what has come back."""
    back = {path: new[path] & ~old[path] for path in new}
    none = jnp.zeros((), bool)
    everywhere = jax.tree_util.tree_map_with_path(
        lambda path, _: back.get(path_name(path), none), params
    )

    def reset(grown: jax.Array, value: Any) -> Any:
        # A leaf may have something else in the state, such as sums over its rows.
        if not grown.shape or getattr(value, "shape", None) != grown.shape:
            return value
        return jnp.where(grown, jnp.zeros_like(value), value)

    state = optax.tree.map_params(
        inner,
        lambda values, grown: jax.tree.map(reset, grown, values),
        state,
        everywhere,
        is_leaf=lambda _: True,
    )
    return dict(new), state


def _given(plan: PruningPlan, masks: Any) -> dict[str, jax.Array]:
    """Masks to begin with, by leaf name."""
    named = {path: mask for path, mask in named_leaves(masks) if mask is not None}
    if set(named) != set(plan.leaves):
        odd = sorted(set(named) ^ set(plan.leaves))[0]
        where = "a mask but no rule" if odd in named else "a rule but no mask"
        raise MismatchError(
            f"prune: {odd!r} has {where}; give the masks that make_masks returns for "
            "the same rules"
        )
    for path, mask in named.items():
        if np.shape(mask) != plan.shapes[path] or not np.issubdtype(
            jnp.result_type(mask), np.bool_
        ):
            raise MismatchError(
                f"prune: the mask of {path!r} is {jnp.result_type(mask)} "
                f"{list(np.shape(mask))}; it must be bool {list(plan.shapes[path])}"
            )
    return {path: jnp.asarray(named[path]) for path in plan.leaves}


def _removing(updates: Any, weights: dict[str, jax.Array], masks: Masks) -> Any:
    def away(name: str, update: Any, weight: jax.Array) -> jax.Array:
        # An update narrower than its weight could not cancel it.
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.promote_types(update.dtype, weight.dtype)
        removed = -jnp.asarray(weight).astype(dtype)
        return jnp.where(masks[name], jnp.asarray(update).astype(dtype), removed)

    return convert_leaves(
        "prune", updates, weights, away, source="the parameters", dtypes=None
    )

"""Time a training step with pruning against the dense one, between two mask updates.

    python benchmarks/pruning_cost.py
    python benchmarks/pruning_cost.py --quick --json cost.json

The models and the way of timing are those of `_training_steps.py`; one step is the
gradient and an update by momentum, in one jitted program. 80 % of every product's
weights are removed. The contenders:

    fixed         masks that were chosen in the beginning
    scheduled     a cubic schedule, masks chosen every 1,000,000 steps: none is timed
    rigl          masks that regrow, every 1,000,000 steps
    by hand       the shortest masked step: gradients and results times the masks

Exit code 1 if fixed or scheduled takes more than 1.05 times the dense step.
"""

import sys
from typing import Any

import jax
import optax
from _training_steps import BAR, Problem, Steps, Table, report, training

from jcompress.pruning import Prune, Unstructured, make_masks, prune
from jcompress.pruning.regrowth import rigl
from jcompress.pruning.schedules import cubic_schedule
from jcompress.pruning.scores import score_by_magnitude
from jcompress.sites import find_sites

NEVER = 1_000_000
SPARSITY = 0.8


def contenders(problem: Problem) -> dict[str, Steps]:
    """Everything that is timed, by name."""
    apply, params = problem.model.apply, problem.variables["params"]
    sites = find_sites(
        lambda v, x: apply(v, x, mutable=["batch_stats"])[0],
        problem.variables,
        problem.x,
    ).below("params")
    momentum = optax.sgd(1e-3, momentum=0.9)
    fixed = [(..., Prune(pattern=Unstructured(), sparsity=SPARSITY))]
    rising = cubic_schedule(final_sparsity=SPARSITY, steps=10 * NEVER)
    scheduled = [(..., Prune(pattern=Unstructured(), sparsity=rising))]
    masks = make_masks(score_by_magnitude(params), fixed, sites=sites)
    makers = {
        "dense": momentum,
        "fixed": prune(momentum, fixed, sites=sites),
        "scheduled": prune(momentum, scheduled, sites=sites, every=NEVER),
        "rigl": prune(momentum, fixed, sites=sites, regrow=rigl(every=NEVER)),
        "by hand": by_hand(momentum, masks),
    }
    return {
        name: training(problem, lambda _: apply, None, on_params(optimizer))
        for name, optimizer in makers.items()
    }


def on_params(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """An optimizer of the pair that `training` trains, parameters and nothing."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        changed, state = inner.update(updates[0], state, params[0])
        return (changed, updates[1]), state

    return optax.GradientTransformation(lambda params: inner.init(params[0]), update)


def by_hand(
    inner: optax.GradientTransformation, masks: Any
) -> optax.GradientTransformation:
    """What a masked step needs at least; the masks are part of the state."""

    def masked(tree: Any, masks: Any) -> Any:
        return jax.tree.map(
            lambda mask, x: x if mask is None else x * mask.astype(x.dtype),
            masks,
            tree,
            is_leaf=lambda x: x is None,
        )

    def init(params: Any) -> Any:
        return inner.init(params), masks

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        changed, moments = inner.update(masked(updates, state[1]), state[0], params)
        after = masked(optax.apply_updates(params, changed), state[1])
        return jax.tree.map(lambda new, old: new - old, after, params), (
            moments,
            state[1],
        )

    return optax.GradientTransformation(init, update)


def missed(table: Table) -> list[str]:
    """The bars that fail, in words."""
    return [
        f"{row['model']}: {row['contender']} takes {row['ratio']:.2f}x, bar {BAR}x"
        for row in table
        if row["contender"] in ("fixed", "scheduled") and row["ratio"] > BAR
    ]


if __name__ == "__main__":
    about = __doc__.split("\n", 1)[0]
    sys.exit(report(about, contenders, missed, rounds=(31, 7)))

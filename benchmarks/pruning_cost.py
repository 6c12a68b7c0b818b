"""Time a training step with pruning against the dense one, between two mask updates.

    python benchmarks/pruning_cost.py
    python benchmarks/pruning_cost.py --quick --json cost.json

The models and the way of timing are those of `training_cost.py`; one step is the
gradient and an update by momentum, in one jitted program. 80 % of every product's
weights are removed. The contenders:

    fixed         masks that were chosen in the beginning
    scheduled     a cubic schedule, masks chosen every 1,000,000 steps: none is timed
    rigl          masks that regrow, every 1,000,000 steps
    by hand       the shortest masked step: gradients and results times the masks

A ratio is that of a contender's median step to the dense one's of the same round.
Exit code 1 if fixed or scheduled takes more than 1.05 times the dense step.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

import jax
import optax
from training_cost import BAR, Problem, Steps, measure, problems, rows, training

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


def main() -> int:
    """Measure, print, and tell whether a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller steps")
    parser.add_argument("--models", nargs="+", default=["resnet", "transformer"])
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    rounds, block = (7, 3) if options.quick else (31, 5)
    table: list[dict[str, Any]] = []
    print(f"{'model':12} {'contender':10} {'ms':>8}  ratio to dense (quartiles)")
    for model, problem in problems(options.quick).items():
        if model not in options.models:
            continue
        for row in rows(model, measure(contenders(problem), rounds, block)):
            table.append(row)
            low, high = row["quartiles"]
            print(
                f"{model:12} {row['contender']:10} {row['milliseconds']:8.2f}  "
                f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})",
                flush=True,
            )
    faults = [
        f"{row['model']}: {row['contender']} takes {row['ratio']:.2f}x, bar {BAR}x"
        for row in table
        if row["contender"] in ("fixed", "scheduled") and row["ratio"] > BAR
    ]
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": table, "missed": faults}, indent=1))
    print("\n".join(f"missed: {fault}" for fault in faults) or "every bar is met")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

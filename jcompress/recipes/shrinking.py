"""The rounds of the main job in which the network becomes narrower."""

import functools
from typing import Any, cast

import jax
import optax

from jcompress.errors import MismatchError
from jcompress.pruning.scores import score_by_taylor
from jcompress.recipes.data import Examples
from jcompress.recipes.models import ResidualCNN, init_model
from jcompress.recipes.recipe import Recipe, RecipeError
from jcompress.recipes.training import (
    IMAGE,
    Small,
    Stage,
    TrainState,
    adamw,
    apply_of,
    distilled,
)
from jcompress.rescaling import fold, folded
from jcompress.shrinking import (
    Cost,
    Plan,
    Width,
    choose,
    find_groups,
    score_units,
    shrink,
    shrunk,
    static_cost,
)


def check_shrinking(recipe: Recipe) -> None:
    """Refuse a recipe whose network cannot become as narrow as it says.

    Raises:
        RecipeError: says what could be reached.
    """
    variables = jax.eval_shape(lambda: _fresh(recipe))
    groups = find_groups(apply_of(recipe), variables, IMAGE)
    scores = {group.name: range(group.size) for group in groups}
    try:
        choose(groups, cast(Any, scores), _rules(recipe), target=recipe.shrinking.keep)
    except MismatchError as error:
        raise RecipeError(f"recipe: shrinking.keep: {error}") from error


def choose_round(
    recipe: Recipe, number: int, teacher: Any, before: Plan | None, variables: Any,
    data: Examples,
) -> Plan:  # fmt: skip
    """What stays after a round: every layer keeps the same fraction of its channels.

    Args:
        recipe: the recipe.
        number: of the round, from 0.
        teacher: the teacher's variables.
        before: the plan of the rounds before, if any.
        variables: what those left.
        data: the training images, on which the scores are taken: the change of the
            loss, to first order, if a channel were gone.

    Returns:
        The plan of all rounds so far.
    """
    fn = apply_of(recipe) if before is None else shrunk(apply_of(recipe), before)

    @jax.jit
    def gradients(variables: Any, teacher: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            logits = fn({**variables, "params": params}, data.images)
            return distilled(recipe, logits, teacher, data.images, data.labels)

        return jax.grad(loss)(variables["params"])

    groups = find_groups(fn, variables, IMAGE)
    left = static_cost(groups, Cost.PARAMETERS)(None)
    whole = sum(leaf.size for leaf in jax.tree.leaves(teacher))
    shrinking = recipe.shrinking
    target = shrinking.keep ** ((number + 1) / shrinking.rounds) * whole / left
    elements = score_by_taylor(variables["params"], gradients(variables, teacher))
    scores = score_units(groups, {"params": elements})
    plan = choose(groups, scores, _rules(recipe), target=min(target, 0.999))
    return plan if before is None else before.then(plan)


def round_stage(
    recipe: Recipe, number: int, images: int, teacher: Any, plan: Plan, start: Any
) -> Stage:
    """Let the narrower network recover: it learns from the teacher.

    Args:
        recipe: the recipe.
        number: of the round, from 0.
        images: number of training images.
        teacher: the teacher's variables.
        plan: the plan of all rounds so far.
        start: the variables after it.
    """
    model = ResidualCNN(recipe.model.widths)

    def in_training(variables: Any, images: Any) -> Any:
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    small = shrunk(in_training, plan)
    optimizer = adamw(recipe.recovery, images)

    def loss_of(
        params: Any, statistics: Any, teacher: Any, x: Any, y: Any
    ) -> tuple[jax.Array, Any]:
        logits, changed = small({"params": params, "batch_stats": statistics}, x)
        return distilled(recipe, logits, teacher, x, y), changed["batch_stats"]

    @jax.jit
    def begin(variables: Any) -> TrainState:
        return TrainState(dict(variables), optimizer.init(variables["params"]))

    @jax.jit
    def step(
        teacher: Any, state: TrainState, x: Any, y: Any
    ) -> tuple[TrainState, jax.Array]:
        params, statistics = state.variables["params"], state.variables["batch_stats"]
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, statistics), gradients = grad(params, statistics, teacher, x, y)
        updates, inner = optimizer.update(gradients, state.optimizer, params)
        params = optax.apply_updates(params, updates)
        return TrainState({"params": params, "batch_stats": statistics}, inner), loss

    return Stage(
        name=f"shrink {number + 1}",
        number=2 + number,
        training=recipe.recovery,
        start=functools.partial(begin, start),
        step=functools.partial(step, teacher),
        logits=jax.jit(shrunk(apply_of(recipe), plan)),
    )


def deployed(recipe: Recipe, plan: Plan, variables: Any = None) -> Small:
    """The network that is quantized, saved and run.

    Args:
        recipe: the recipe.
        plan: what was kept.
        variables: of the narrow network; None for shapes only.
    """
    narrow = shrunk(apply_of(recipe), plan)
    # Which leaves fold does not depend on their values, unless those are 0 or 1.
    odd = jax.tree.map(lambda leaf: leaf + 0.5, shrink(_fresh(recipe), plan))
    values = odd if variables is None else variables
    folding = fold(narrow, values, IMAGE)
    small = folding.small
    if variables is None:
        small = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), small
        )
    return Small(folded(narrow, folding.removed), small)


def smaller(variables: Any, before: Plan | None, plan: Plan) -> Any:
    """Cut what a later plan removes from what an earlier one left."""
    if before is None:
        return shrink(variables, plan)
    masks: dict[str, dict[int, Any]] = {}
    for path, axes in plan.masks.items():
        for axis, mask in axes.items():
            had = before.masks.get(path, {}).get(axis)
            masks.setdefault(path, {})[axis] = mask if had is None else mask[had]
    return shrink(variables, Plan({}, masks))


def _rules(recipe: Recipe) -> Any:
    return [(..., Width(multiple=recipe.shrinking.multiple))]


def _fresh(recipe: Recipe) -> dict[str, Any]:
    model = ResidualCNN(recipe.model.widths)
    return init_model(model, jax.random.key(recipe.seed, impl="rbg"))

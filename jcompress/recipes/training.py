"""The trainings of the main job, an epoch at a time, and what they are made of."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jcompress.distillation.logits import soft_targets
from jcompress.formats import Int
from jcompress.pruning import Prune, Unstructured, prune
from jcompress.pruning.schedules import cubic_schedule
from jcompress.quantization import Quantize, Weights, fake_quant
from jcompress.quantization.convert import check as check_quantization
from jcompress.recipes.data import Examples
from jcompress.recipes.models import ResidualCNN, init_model
from jcompress.recipes.recipe import Recipe, Training
from jcompress.rules import Rules
from jcompress.sites import Sites, find_sites

Apply = Callable[[Any, Any], jax.Array]
"""`apply(variables, images float32[N, 8, 8, 1]) -> logits float32[N, 10]`."""


class TrainState(NamedTuple):
    """What a training carries from step to step.

    Attributes:
        variables: `params` and `batch_stats` of the network.
        optimizer: state of the optimizer; it holds the masks, if there are any.
    """

    variables: dict[str, Any]
    optimizer: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One of the trainings.

    Attributes:
        name: "teacher", "shrink 1", ... or "student".
        number: its place in the job; part of the seed of the data's order.
        training: its hyperparameters.
        start: makes the state before the first step.
        step: `(state, images, labels) -> (state, loss)`.
        logits: the network as the stage leaves it, jitted.
    """

    name: str
    number: int
    training: Training
    start: Callable[[], TrainState]
    step: Callable[[TrainState, Any, Any], tuple[TrainState, jax.Array]]
    logits: Apply


def apply_of(recipe: Recipe) -> Apply:
    """The network with its running statistics, as it is used after training."""
    model = ResidualCNN(recipe.model.widths)

    def apply(variables: Any, images: Any) -> jax.Array:
        return cast(jax.Array, model.apply(variables, images))

    return apply


def variables_of(recipe: Recipe) -> dict[str, Any]:
    """Shapes and dtypes of the network's variables; nothing is computed."""
    model = ResidualCNN(recipe.model.widths)
    return cast(
        dict[str, Any],
        jax.eval_shape(lambda: init_model(model, jax.random.key(0))),
    )


IMAGE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
"""One image, to trace networks with."""


def sites_of(recipe: Recipe) -> Sites:
    """The sites of the whole network for one image."""
    return find_sites(apply_of(recipe), variables_of(recipe), IMAGE)


class Small(NamedTuple):
    """The network after shrinking, its normalisation folded into its weights.

    Attributes:
        apply: the network.
        variables: its tree, or shapes and dtypes of it.
    """

    apply: Apply
    variables: dict[str, Any]

    @property
    def sites(self) -> Sites:
        """Its sites for one image."""
        return find_sites(self.apply, self.variables, IMAGE)


def quantization_rules(recipe: Recipe, sites: Sites) -> Rules[Quantize]:
    """How the recipe stores every weight of a network.

    Args:
        recipe: the recipe.
        sites: of the network, whole or small.

    Raises:
        MismatchError: the recipe's formats do not fit the network.
    """
    edge = Quantize(weights=Weights(format=Int(recipe.quantization.edge_bits)))
    inner = Quantize(weights=Weights(format=Int(recipe.quantization.weight_bits)))
    rules: Rules[Quantize] = [
        ("params/stem/kernel", edge),
        ("params/head/kernel", edge),
        (..., inner),
    ]
    check_quantization(sites, rules, transform="recipe")
    return rules


def teacher_stage(recipe: Recipe, images: int) -> Stage:
    """Train the dense network on the labels, with batch normalisation as usual.

    Args:
        recipe: the recipe.
        images: number of training images.
    """
    model = ResidualCNN(recipe.model.widths)
    optimizer = adamw(recipe.teacher, images)

    @jax.jit
    def start() -> TrainState:
        # This kind of key compiles in a quarter of the default's time.
        variables = init_model(model, jax.random.key(recipe.seed, impl="rbg"))
        return TrainState(variables, optimizer.init(variables["params"]))

    def loss_of(params: Any, statistics: Any, x: Any, y: Any) -> tuple[jax.Array, Any]:
        logits, changed = model.apply(
            {"params": params, "batch_stats": statistics},
            x,
            train=True,
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, y), changed["batch_stats"]

    @jax.jit
    def step(state: TrainState, x: Any, y: Any) -> tuple[TrainState, jax.Array]:
        params, statistics = state.variables["params"], state.variables["batch_stats"]
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, statistics), gradients = grad(params, statistics, x, y)
        updates, inner = optimizer.update(gradients, state.optimizer, params)
        params = optax.apply_updates(params, updates)
        return TrainState({"params": params, "batch_stats": statistics}, inner), loss

    return Stage(
        name="teacher",
        number=0,
        training=recipe.teacher,
        start=start,
        step=step,
        logits=jax.jit(apply_of(recipe)),
    )


def student_stage(recipe: Recipe, images: int, teacher: Any, small: Small) -> Stage:
    """Round and distil the small network, and prune it if the recipe says so.

    The statistics of batch normalisation are part of the weights by now: what is
    trained is then the very function that is deployed.

    Args:
        recipe: the recipe.
        images: number of training images.
        teacher: the teacher's variables.
        small: the small network.

    Raises:
        MismatchError: the recipe's formats or sparsity do not fit the network.
    """
    training = recipe.student
    sites = small.sites
    simulated = fake_quant(small.apply, quantization_rules(recipe, sites))
    steps = images // training.batch_size
    optimizer: Any = adamw(training, images)
    if recipe.pruning.sparsity > 0:
        optimizer = prune(
            optimizer,
            # The first convolution and the classifier are small, and most sensitive.
            [
                ("stem/kernel", None),
                ("head/kernel", None),
                (..., Prune(pattern=Unstructured())),
            ],
            sites=sites.below("params"),
            sparsity=cubic_schedule(
                final_sparsity=recipe.pruning.sparsity,
                # The masks of the last choice must have the whole sparsity.
                steps=max(1, recipe.pruning.epochs * steps - recipe.pruning.every),
            ),
            every=recipe.pruning.every,
        )

    def start(variables: Any) -> TrainState:
        return TrainState(dict(variables), optimizer.init(variables["params"]))

    def loss_of(params: Any, rest: Any, teacher: Any, x: Any, y: Any) -> jax.Array:
        return distilled(
            recipe, simulated({**rest, "params": params}, x), teacher, x, y
        )

    # The teacher is an argument: XLA takes long over constants of this size.
    @jax.jit
    def step(
        teacher: Any, state: TrainState, x: Any, y: Any
    ) -> tuple[TrainState, jax.Array]:
        params = state.variables["params"]
        grad = jax.value_and_grad(loss_of)
        loss, gradients = grad(params, state.variables, teacher, x, y)
        updates, inner = optimizer.update(gradients, state.optimizer, params)
        params = optax.apply_updates(params, updates)
        return TrainState({**state.variables, "params": params}, inner), loss

    return Stage(
        name="student",
        number=1,
        training=training,
        start=functools.partial(jax.jit(start), small.variables),
        step=functools.partial(step, teacher),
        logits=jax.jit(simulated),
    )


def distilled(
    recipe: Recipe, logits: jax.Array, teacher: Any, images: Any, labels: Any
) -> jax.Array:
    """The loss of a network that learns from the teacher and from the labels."""
    weight = recipe.distillation.weight
    soft = soft_targets(
        logits,
        apply_of(recipe)(teacher, images),
        temperature=recipe.distillation.temperature,
    )
    return weight * jnp.mean(soft) + (1 - weight) * cross_entropy(logits, labels)


def run_epoch(
    stage: Stage, state: TrainState, data: Examples, *, seed: int, epoch: int
) -> tuple[TrainState, float]:
    """One pass over the training images.

    The order of the images and their shifts follow from the seed, the stage and the
    epoch alone, so an epoch can be repeated after an interruption.

    Returns:
        The new state and the mean loss of the epoch.
    """
    losses = []
    for x, y in _batches(
        data, stage, np.random.default_rng([seed, stage.number, epoch])
    ):
        state, loss = stage.step(state, x, y)
        losses.append(loss)
    return state, float(np.mean(jax.device_get(losses)))


def accuracy(logits: Any, labels: Any) -> float:
    """Fraction of examples whose greatest logit is that of their label."""
    return float(np.mean(np.argmax(np.asarray(logits), axis=-1) == labels))


def _batches(
    data: Examples, stage: Stage, random: np.random.Generator
) -> Iterator[tuple[Any, Any]]:
    size = stage.training.batch_size
    order = random.permutation(len(data))
    for start in range(0, len(data) - size + 1, size):
        chosen = order[start : start + size]
        yield _shifted(data.images[chosen], random), data.labels[chosen]


def _shifted(images: Any, random: np.random.Generator) -> Any:
    """Move each image by up to one pixel each way; zeros come in at the edge."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = random.integers(0, 3, (2, len(images)))
    height, width = np.arange(images.shape[1]), np.arange(images.shape[2])
    return padded[
        np.arange(len(images))[:, None, None],
        (rows[:, None] + height)[:, :, None],
        (columns[:, None] + width)[:, None, :],
    ]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean loss of the labels."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def adamw(training: Training, images: int) -> optax.GradientTransformation:
    """AdamW with a warm-up of one epoch and a cosine to 0."""
    steps = images // training.batch_size
    rate = optax.warmup_cosine_decay_schedule(
        init_value=training.learning_rate / 10,
        peak_value=training.learning_rate,
        warmup_steps=min(steps, max(1, training.epochs * steps - 1)),
        decay_steps=max(2, training.epochs * steps),
    )
    return optax.adamw(rate, weight_decay=training.weight_decay)

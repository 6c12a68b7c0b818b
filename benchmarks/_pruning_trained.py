"""Ways to prune a network while it learns, all in the same number of steps."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _pruning_network import Data, apply, loss_of, sites

from jcompress.allocation import Ranking
from jcompress.pruning import (
    NM,
    Pattern,
    Prune,
    apply_masks,
    make_masks,
    prune,
)
from jcompress.pruning.amounts import share_by_shape
from jcompress.pruning.regrowth import ac_dc, rigl, sparse_evolution
from jcompress.pruning.schedules import cubic_schedule
from jcompress.pruning.scores import (
    average_fisher,
    average_scores,
    movement,
    score_at_random,
    score_by_grasp,
    score_by_magnitude,
    score_by_snip,
    score_by_synflow,
)
from jcompress.pruning.training import prune_in_rounds, sr_ste, top_kast
from jcompress.rules import Rules

BATCH = 128
GLOBAL = {"ranking": Ranking.GLOBAL}


class Run(NamedTuple):
    """What a method gets.

    Attributes:
        data: the images.
        steps: of the whole training; all methods have as many.
        params: those to begin with.
        key: for the order of the data, and for what is chosen by chance.
        pattern: what is removed together.
        sparsity: how much of it; None for N:M.
    """

    data: Data
    steps: int
    params: Any
    key: jax.Array
    pattern: Pattern
    sparsity: float | None

    @property
    def final(self) -> float:
        """The fraction that is gone in the end."""
        if isinstance(self.pattern, NM):
            return float(self.pattern.sparsity)
        assert self.sparsity is not None
        return self.sparsity

    def rules(self, sparsity: Any = None, **fields: Any) -> Rules[Prune]:
        """Every weight but those of the first convolution and the last product."""
        amount = self.sparsity if sparsity is None else sparsity
        spec = Prune(pattern=self.pattern, sparsity=amount, **fields)
        return [("conv1/w", None), ("last/w", None), (..., spec)]


Loss = Callable[[Any], tuple[Any, jax.Array]]
"""params -> the tree that is used, and what is added to the loss."""


def train(
    run: Run,
    optimizer: Any,
    params: Any,
    *,
    steps: int | None = None,
    first: int = 0,
    used: Loss = lambda params: (params, jnp.zeros((), jnp.float32)),
) -> Any:
    """The parameters after so many steps.

    Args:
        run: data and keys.
        optimizer: made with `prune` or not.
        params: those to begin with.
        steps: how many; all that the run has by default.
        first: the number of steps before, which the order of the data goes on from.
        used: what the forward pass makes of the parameters.
    """
    count = run.steps if steps is None else steps

    # Not in a scan: XLA's convolutions on CPUs are five times slower within loops.
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, key: jax.Array) -> Any:
        numbers = jax.random.randint(key, (BATCH,), 0, len(run.data.x))
        x, y = run.data.x[numbers], run.data.y[numbers]

        def loss(params: Any) -> jax.Array:
            tree, more = used(params)
            return loss_of(tree, x, y) + more

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.array, params)
    state = optimizer.init(params)
    for number in range(first, first + count):
        params, state = step(params, state, jax.random.fold_in(run.key, number))
    return params


def momentum(steps: int) -> Any:
    """SGD with momentum, its rate a cosine to zero.

    Chosen over AdamW with a rate of 1e-3 by held-out images. Moments that begin anew
    where weights grow do not suit Adam: its first step there is three times the usual.
    """
    return optax.sgd(optax.cosine_decay_schedule(0.05, steps), momentum=0.9)


def dense(run: Run) -> Any:
    """Nothing is removed."""
    return train(run, momentum(run.steps), run.params)


def once(run: Run, **fields: Any) -> Any:
    """Trained for half of the steps, pruned once, fine-tuned for the rest."""
    half = run.steps // 2
    params = train(run, momentum(half), run.params, steps=half)
    masks = make_masks(score_by_magnitude(params), run.rules(**fields), sites=sites())
    params = apply_masks(params, masks)
    optimizer = prune(
        momentum(run.steps - half), run.rules(**fields), sites=sites(), masks=masks
    )
    return train(run, optimizer, params, steps=run.steps - half, first=half)


def gradually(run: Run, **fields: Any) -> Any:
    """By a cubic schedule over the first half of one training.

    When it begins and ends was chosen among five by images that are held out, and so
    was when `once` prunes, among three.
    """
    rising = cubic_schedule(final_sparsity=run.final, steps=run.steps // 2)
    optimizer = prune(
        momentum(run.steps), run.rules(rising, **fields), sites=sites(), every=25
    )
    return train(run, optimizer, run.params)


def by_training_score(score: Callable[[], Any], run: Run) -> Any:
    """By a score that gathers gradients, by the same cubic schedule."""
    rising = cubic_schedule(final_sparsity=run.final, steps=run.steps // 2)
    optimizer = prune(
        momentum(run.steps), run.rules(rising), sites=sites(), every=25, score=score()
    )
    return train(run, optimizer, run.params)


def from_the_start(
    run: Run, scores: Callable[[Run], Any], *, regrow: Any = None, **fields: Any
) -> Any:
    """With masks that were chosen before the first step."""
    rules = run.rules(**fields)
    masks = make_masks(scores(run), rules, sites=sites())
    optimizer = prune(
        momentum(run.steps), rules, sites=sites(), masks=masks, regrow=regrow
    )
    return train(run, optimizer, apply_masks(run.params, masks))


def by_chance(run: Run) -> Any:
    """Scores by chance."""
    return score_at_random(run.params, key=jax.random.fold_in(run.key, 7))


def first_batch(run: Run) -> tuple[jax.Array, jax.Array]:
    """Images for scores that are taken once."""
    return run.data.x[:1024], run.data.y[:1024]


def by_snip(run: Run) -> Any:
    """|w g| of one large batch."""
    gradients = jax.jit(jax.grad(loss_of))(run.params, *first_batch(run))
    return score_by_snip(run.params, gradients)


def by_grasp(run: Run) -> Any:
    """What the gradient's norm loses, at the temperature of the authors' program.

    Without it the weights stay that make the logits of a network that knows nothing
    as large as 100, and no step of this size leads out of there.
    """

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return loss_of(params, x, y, temperature=200.0)

    return score_by_grasp(loss, run.params, *first_batch(run))


def by_synflow(run: Run) -> Any:
    """SynFlow in fifty rounds, over all layers; the masks are there at once."""
    x = run.data.x[:1]
    rules = run.rules(**GLOBAL)
    score = jax.jit(lambda params: score_by_synflow(apply, params, x))
    start, masks = prune_in_rounds(
        run.params, rules, sites=sites(), rounds=50, score=score
    )
    optimizer = prune(momentum(run.steps), rules, sites=sites(), masks=masks)
    return train(run, optimizer, start)


def by_shape(run: Run) -> Any:
    """A cubic schedule, large layers losing more (ERK)."""
    rising = cubic_schedule(final_sparsity=run.final, steps=run.steps // 2)
    rules = share_by_shape(run.rules(rising), sites=sites())
    optimizer = prune(momentum(run.steps), rules, sites=sites(), every=25)
    return train(run, optimizer, run.params)


def rewound(run: Run) -> Any:
    """A lottery ticket: three rounds, each from the weights after a tenth."""
    early = train(run, momentum(run.steps), run.params, steps=run.steps // 10)

    def recover(masks: Any, params: Any, number: int) -> Any:
        optimizer = prune(momentum(run.steps), run.rules(), sites=sites(), masks=masks)
        return train(run, optimizer, params, steps=run.steps, first=run.steps // 10)

    whole = dense(run)
    params, _ = prune_in_rounds(
        whole, run.rules(), sites=sites(), rounds=3, recover=recover, rewind=early
    )
    return params


def regrown(run: Run, make: Callable[..., Any]) -> Any:
    """Random masks that change while the network learns.

    How often was chosen among 25, 50 and 100 steps of 1,000 by held-out images.
    """
    regrow = make(every=run.steps // 10, stop=3 * run.steps // 4)
    return from_the_start(run, by_chance, regrow=regrow)


def alternating(run: Run) -> Any:
    """AC/DC: dense and sparse phases."""
    phase = max(run.steps // 8, 1)
    optimizer = prune(
        momentum(run.steps),
        run.rules(),
        sites=sites(),
        regrow=ac_dc(begin=phase, phase=phase, steps=run.steps),
    )
    return train(run, optimizer, run.params)


def straight(run: Run, kind: str) -> Any:
    """Weights that are left out in the forward pass and go on learning."""
    rules = run.rules(run.final)

    def used(params: Any) -> tuple[Any, jax.Array]:
        if kind == "sr-ste":
            small = sr_ste(params, rules, sites=sites())
            return small.params, np.float32(2e-4) * small.penalty
        behind = max(0.0, 1 - 2 * (1 - run.final))
        small = top_kast(params, rules, sites=sites(), backward=behind)
        return small.params, np.float32(1e-5) * small.penalty

    params = train(run, momentum(run.steps), run.params, used=used)
    masks = make_masks(score_by_magnitude(params), rules, sites=sites())
    return apply_masks(params, masks)


METHODS: dict[str, Callable[[Run], Any]] = {
    "once, magnitude": once,
    "gradual, magnitude": gradually,
    "gradual, magnitude, global": lambda run: gradually(run, **GLOBAL),
    "gradual, magnitude, erk": by_shape,
    "gradual, movement": lambda run: by_training_score(movement, run),
    "gradual, taylor": lambda run: by_training_score(
        lambda: average_scores(score_by_snip), run
    ),
    "gradual, fisher": lambda run: by_training_score(average_fisher, run),
    "random masks": lambda run: from_the_start(run, by_chance),
    "snip": lambda run: from_the_start(run, by_snip, **GLOBAL),
    "grasp": lambda run: from_the_start(run, by_grasp, **GLOBAL),
    "synflow": by_synflow,
    "lottery ticket": rewound,
    "rigl": lambda run: regrown(run, rigl),
    "set": lambda run: regrown(run, sparse_evolution),
    "ac/dc": alternating,
    "top-kast": lambda run: straight(run, "top-kast"),
    "sr-ste": lambda run: straight(run, "sr-ste"),
}

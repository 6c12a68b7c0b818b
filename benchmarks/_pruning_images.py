"""Pruning while a convolutional network learns Fashion-MNIST, by many methods."""

import functools
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _bench import Log, Row

from jcompress.allocation import Ranking
from jcompress.pruning import (
    NM,
    Pattern,
    Prune,
    Unstructured,
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
from jcompress.report import stored_bytes
from jcompress.rules import Rules
from jcompress.sites import Sites, find_sites

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
import fashion_mnist

NAME, BATCH, CLASSES = "Fashion-MNIST", 128, 10
LEVELS: Mapping[str, tuple[Pattern, float | None]] = {
    **{f"{share} %": (Unstructured(), share / 100) for share in (80, 90, 95, 98)},
    "2:4": (NM(2, 4), None),
}
QUICK = ("90 %", "95 %", "2:4")


class Data(NamedTuple):
    """Images [n, 28, 28, 1] and labels."""

    x: jax.Array
    y: jax.Array
    test: tuple[jax.Array, jax.Array]


def load(quick: bool) -> Data:
    """The first 20,000 images to train with (4,000 if quick), and all to test with."""
    x, y, x_test, y_test = fashion_mnist.load(4_000 if quick else 20_000, 10_000)
    test = jnp.asarray(x_test), jnp.asarray(y_test)
    return Data(jnp.asarray(x), jnp.asarray(y), test)


def init(key: jax.Array) -> Any:
    """Two convolutions and two products, 207,354 parameters."""
    shapes = {
        "conv1": (3, 3, 4, 16),
        "conv2": (3, 3, 16, 32),
        "hidden": (7 * 7 * 32, 128),
        "last": (128, CLASSES),
    }
    return {
        name: {
            "w": jax.random.normal(key, shape)
            * np.float32((2 / np.prod(shape[:-1])) ** 0.5),
            "b": jnp.zeros(shape[-1]),
        }
        for key, (name, shape) in zip(
            jax.random.split(key, len(shapes)), shapes.items(), strict=True
        )
    }


def apply(params: Any, x: jax.Array) -> jax.Array:
    """[B, 28, 28, 1] -> [B, 10]."""
    x = _squares(x, 14).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 14, 14, 4)
    x = _squares(_convolved(params["conv1"], x), 7).mean((2, 4))
    x = _convolved(params["conv2"], x).reshape(len(x), -1)
    x = jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"][None])
    out: jax.Array = x @ params["last"]["w"] + params["last"]["b"][None]
    return out


def _squares(x: jax.Array, size: int) -> jax.Array:
    """[B, 2 S, 2 S, C] -> [B, S, 2, S, 2, C]."""
    return x.reshape(len(x), size, 2, size, 2, x.shape[-1])


def _convolved(own: Any, x: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(
        x, own["w"], (1, 1), "SAME", dimension_numbers=layout
    )
    return jax.nn.relu(out + own["b"][None, None, None])


@functools.cache
def sites() -> Sites:
    """Where the weights are used."""
    params = jax.eval_shape(init, jax.random.key(0))
    return find_sites(apply, params, jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32))


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


def loss_of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean cross-entropy."""
    losses = optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y)
    return jnp.mean(losses)


def by_snip(run: Run) -> Any:
    """|w g| of one large batch."""
    gradients = jax.jit(jax.grad(loss_of))(run.params, *first_batch(run))
    return score_by_snip(run.params, gradients)


def by_grasp(run: Run) -> Any:
    """What the gradient's norm loses."""
    return score_by_grasp(loss_of, run.params, *first_batch(run))


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


GLOBAL = {"ranking": Ranking.GLOBAL}
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
FOR_NM = ("once, magnitude", "gradual, magnitude", "sr-ste")


def images(
    log: Log, seeds: int, quick: bool, wanted: Callable[[str, str], bool]
) -> None:
    """Rows of all methods; those that are in the log are not made again."""
    data = load(quick)
    steps = 300 if quick else 1000
    for seed in range(seeds):
        key = jax.random.key(seed)
        start = init(jax.random.fold_in(key, 1))
        for level in ["dense", *(QUICK if quick else LEVELS)]:
            pattern, sparsity = LEVELS.get(level, (Unstructured(), 0.5))
            methods: Mapping[str, Callable[[Run], Any]] = METHODS
            if level == "dense":
                methods = {"dense": dense}
            for name, method in methods.items():
                nm = isinstance(pattern, NM)
                if (nm and name not in FOR_NM) or not wanted(level, name):
                    continue
                if log.has(NAME, "training", level, name, seed):
                    continue
                run = Run(data, steps, start, key, pattern, sparsity)
                began = time.perf_counter()
                params = jax.block_until_ready(method(run))
                spent = time.perf_counter() - began
                zeros = check(params, run, level)
                score = accuracy(params, data.test)
                row = Row(
                    *(NAME, "training", level, name, seed, score, None),
                    stored=stored_bytes(params),
                    seconds=spent,
                    extra={"zeros": zeros},
                )
                log.add(row)


def check(params: Any, run: Run, level: str) -> float:
    """The share of zeros in what is pruned; it must be what was asked for."""
    pruned = [params[name]["w"] for name in ("conv2", "hidden")]
    zeros = sum(int(jnp.sum(leaf == 0)) for leaf in pruned)
    share = float(zeros / sum(leaf.size for leaf in pruned))
    if level != "dense":
        asked = run.final
        if share < asked - 0.002:
            raise AssertionError(f"{share:.4f} zeros, not {asked}")
    return share


@jax.jit
def _right(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    right: jax.Array = jnp.argmax(apply(params, x), -1) == y
    return jnp.mean(right, dtype=jnp.float32)


def accuracy(params: Any, given: tuple[jax.Array, jax.Array]) -> float:
    """The fraction that is classified as labelled."""
    return float(_right(params, *given))

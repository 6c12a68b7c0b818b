"""Scores of blocks and of layers: what enters, what leaves, and what a loss costs."""

import dataclasses
import doctest
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import shrinking_models as models
from _models import gpt

from jcompress.depth import importance
from jcompress.depth.importance import (
    BlockInfluence,
    Importance,
    MetricDrop,
    OutputSimilarity,
    score_blocks,
    score_layers,
)
from jcompress.depth.removing import remove_blocks, skipped
from jcompress.errors import MismatchError
from jcompress.quantization import Quantize, quantize
from jcompress.shrinking.choosing import Cost, Width, choose
from jcompress.shrinking.free import ShrinkableAxes
from jcompress.shrinking.groups import Groups, find_groups
from jcompress.shrinking.plan import shrink, shrunk
from jcompress.shrinking.scoring import score_units

DEPTH, IDLE = 4, 2
NAMES = [f"params/layer{number}" for number in range(DEPTH)]
STACK = "params/layers/attention/key/kernel:0"
WORDS = 15
SCANNED = models.build("gpt_scanned").model
LISTED = gpt(12, 5, 4, 2, 8, 20, DEPTH, WORDS)
(TOKENS,) = LISTED.inputs(32)


def quality(logits: jax.Array) -> jax.Array:
    """How likely the sums of each word and the one before it are."""
    wanted = (TOKENS + jnp.roll(TOKENS, 1, axis=1)) % WORDS
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    return -jnp.mean(losses[:, 1:])


@functools.cache
def trained() -> Any:
    """The listed decoder after some steps, one of whose layers then adds nothing."""
    variables = LISTED.variables()
    optimizer = optax.sgd(0.1, momentum=0.9)

    def step(carry: Any, _: Any) -> Any:
        variables, state = carry
        grads = jax.grad(lambda v: -quality(LISTED.evaluate(v, TOKENS)))(variables)
        updates, state = optimizer.update(grads, state, variables)
        return (optax.apply_updates(variables, updates), state), None

    (variables, _), _ = jax.jit(
        lambda start: jax.lax.scan(step, start, None, length=100)
    )((variables, optimizer.init(variables)))
    params = dict(variables["params"])
    idle = dict(params[f"layer{IDLE}"])
    idle["attention"] = dict(idle["attention"])
    idle["attention"]["out"] = jax.tree.map(jnp.zeros_like, idle["attention"]["out"])
    idle["down"] = jax.tree.map(jnp.zeros_like, idle["down"])
    return {"params": params | {f"layer{IDLE}": idle}}


def stacked(variables: Any) -> Any:
    """The same numbers as the scanned decoder wants them."""
    params = dict(variables["params"])
    layers = [params.pop(f"layer{number}") for number in range(DEPTH)]
    return {
        "params": params | {"layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
    }


@functools.cache
def groups() -> Groups:
    return find_groups(SCANNED.evaluate, SCANNED.shapes(), TOKENS)


@functools.cache
def listed_scores(by: Importance) -> Any:
    found = score_blocks(
        jax.jit(LISTED.evaluate), trained(), TOKENS, blocks=NAMES, by=by
    )
    assert list(found) == NAMES
    return np.asarray(list(found.values()))


KINDS = (BlockInfluence(), OutputSimilarity(), MetricDrop(quality))


@pytest.mark.parametrize("by", KINDS, ids=lambda by: type(by).__name__)
def test_an_idle_layer_scores_lowest_listed_and_stacked(by: Importance) -> None:
    listed = listed_scores(by)
    assert listed.argmin() == IDLE
    assert abs(listed[IDLE]) < 1e-6
    assert (np.delete(listed, IDLE) > 1e-3).all()
    scores = score_layers(
        jax.jit(SCANNED.evaluate),
        stacked(trained()),
        TOKENS,
        groups=groups(),
        stacks=[STACK],
        by=by,
    )
    assert scores[STACK].dtype == np.float64
    np.testing.assert_allclose(scores[STACK], listed, rtol=1e-3, atol=1e-6)


def test_layers_go_by_importance() -> None:
    """From the scores to the smaller function, in both kinds of models."""
    listed = listed_scores(BlockInfluence())
    least = [NAMES[number] for number in np.argsort(listed)[:2]]
    without = jax.jit(skipped(LISTED.evaluate, least))
    wanted = without(remove_blocks(trained(), least), TOKENS)

    variables = stacked(trained())
    scores = score_layers(
        SCANNED.evaluate, variables, TOKENS, groups=groups(), stacks=[STACK]
    )
    plan = groups().keep({STACK: scores[STACK].argsort()[2:]})
    layers = dataclasses.replace(groups(), table=(groups()[STACK],))
    chosen = choose(
        layers, scores, [(..., Width(reduced=True))], target=0.75, cost=Cost.BYTES
    )
    np.testing.assert_array_equal(chosen.kept[STACK], plan.kept[STACK])
    small = jax.jit(shrunk(SCANNED.evaluate, chosen))
    found = small(shrink(variables, chosen), TOKENS)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)

    # Beside widths, of which every group keeps the same fraction.
    both = {**score_units(groups(), jax.tree.map(jnp.abs, variables)), **scores}
    rules = [(..., Width(reduced=True))]
    half = choose(groups(), both, rules, target=0.3)
    assert STACK in half.kept
    assert IDLE not in half.kept[STACK]


def apart(a: Any, b: Any) -> Any:
    """Equation 1 for every row, in NumPy."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return 1 - (a * b).sum(-1) / lengths


def layer(x: jax.Array, w: jax.Array) -> jax.Array:
    return x + jnp.tanh(x @ w)


WEIGHTS = jax.random.normal(jax.random.key(0), (4, 3, 3))
X = jax.random.normal(jax.random.key(1), (5, 3))


def hidden(order: Any) -> list[Any]:
    """What enters the layers, in this order, and the result."""
    values = [X]
    for number in order:
        values.append(layer(values[-1], WEIGHTS[number]))
    return values


def wanted(order: Any) -> Any:
    """The mean influence of each layer over its runs."""
    values, found = hidden(order), np.zeros((4, 2))
    for step, number in enumerate(order):
        rows = apart(values[step], values[step + 1])
        found[number] += rows.sum(), rows.size
    return found[:, 0] / found[:, 1]


def scan(x: jax.Array, w: jax.Array, **options: Any) -> jax.Array:
    out: jax.Array = jax.lax.scan(lambda x, w: (layer(x, w), None), x, w, **options)[0]
    return out


def with_others(p: Any, x: jax.Array) -> jax.Array:
    """Carries also what the layers do not change, or what has no direction."""

    def step(carry: Any, given: Any) -> Any:
        x, mask, count, total = carry
        w, number = given
        x = layer(x, w)
        return (x, mask, count + 1.0, total + jnp.sum(x)), number

    start = (x, jnp.ones(3), jnp.float32(0), jnp.float32(0))
    (x, mask, _, total), _ = jax.lax.scan(step, start, (p["w"], jnp.arange(4)))
    return x * mask[None] + 0 * total


def checkpointed(p: Any, x: jax.Array) -> jax.Array:
    @jax.jit
    def run(w: jax.Array, x: jax.Array) -> jax.Array:
        step = jax.checkpoint(lambda x, w: (layer(x, w), None))
        out: jax.Array = jax.lax.scan(step, x, w)[0]
        return out

    return run(p["w"], x)


def repeated(p: Any, x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 2, lambda _, x: scan(x, p["w"]), x)


FORWARD = [0, 1, 2, 3]
SCANS: dict[str, tuple[Callable[..., Any], list[int]]] = {
    "plain": (lambda p, x: scan(x, p["w"]), FORWARD),
    "unrolled": (lambda p, x: scan(x, p["w"], unroll=2), FORWARD),
    "backward": (lambda p, x: scan(x, p["w"], reverse=True), FORWARD[::-1]),
    "flipped": (lambda p, x: scan(x, p["w"][::-1]), FORWARD[::-1]),
    "twice": (lambda p, x: scan(scan(x, p["w"]), p["w"]), FORWARD * 2),
    "looped": (repeated, FORWARD * 2),
    "checkpointed": (checkpointed, FORWARD),
    "others": (with_others, FORWARD),
}


@pytest.mark.parametrize("name", SCANS)
def test_influence_of_layers(name: str) -> None:
    fn, order = SCANS[name]
    params = {"w": WEIGHTS}
    found = find_groups(fn, params, X)
    scores = score_layers(fn, params, X, groups=found, stacks=["w:0"])
    np.testing.assert_allclose(scores["w:0"], wanted(order), rtol=1e-5)


def test_influence_of_layers_on_another_axis_and_within_a_stack() -> None:
    def on_last(p: Any, x: jax.Array) -> jax.Array:
        return scan(x, jnp.moveaxis(p["w"], 2, 0))

    def within(p: Any, x: jax.Array) -> jax.Array:
        out: jax.Array = jax.lax.scan(lambda x, w: (scan(x, w), None), x, p["w"])[0]
        return out

    moved = {"w": jnp.moveaxis(WEIGHTS, 0, 2)}
    scores = score_layers(
        on_last, moved, X, groups=find_groups(on_last, moved, X), stacks=["w:2"]
    )
    np.testing.assert_allclose(scores["w:2"], wanted(FORWARD), rtol=1e-5)

    nested = {"w": WEIGHTS.reshape(2, 2, 3, 3)}
    found = find_groups(within, nested, X)
    scores = score_layers(within, nested, X, groups=found, stacks=["w:0", "w:1"])
    values = hidden(FORWARD)
    pairs = [apart(values[0], values[2]).mean(), apart(values[2], values[4]).mean()]
    np.testing.assert_allclose(scores["w:0"], pairs, rtol=1e-5)
    inner = wanted(FORWARD).reshape(2, 2).mean(axis=0)
    np.testing.assert_allclose(scores["w:1"], inner, rtol=1e-5)


def test_one_pass_scores_blocks_wherever_they_are() -> None:
    traces = []

    @jax.custom_vjp
    def sealed(w: jax.Array, x: jax.Array) -> jax.Array:
        return layer(x, w)

    sealed.defvjp(lambda w, x: (layer(x, w), w), lambda w, g: (w, g))

    def model(p: Any, x: jax.Array) -> jax.Array:
        traces.append(None)
        x = layer(x, p["a"]["w"])
        x = jax.jit(lambda w, x: jax.checkpoint(layer)(x, w))(p["b"]["w"], x)
        x = sealed(p["c"]["w"], x)
        start = (jnp.int32(0), x)
        twice = lambda s: (s[0] + 1, layer(s[1], p["d"]["w"]))  # noqa: E731
        _, x = jax.lax.while_loop(lambda s: s[0] < 2, twice, start)
        never = lambda x: layer(x, p["e"]["w"])  # noqa: E731
        return jax.lax.cond(jnp.isnan(x).any(), never, lambda x: x, x)

    names = list("abcde")
    params = {name: {"w": WEIGHTS[n % 4]} for n, name in enumerate(names)}
    scores = score_blocks(model, params, X, blocks=names)
    found = [scores[name] for name in names]
    np.testing.assert_allclose(found[:4], wanted([0, 1, 2, 3, 3]), rtol=1e-5)
    assert found[4] == 0
    assert len(traces) == 1
    without = skipped(model, ["c"])(remove_blocks(params, ["c"]), X)
    np.testing.assert_allclose(without, hidden([0, 1, 3, 3])[-1], rtol=1e-5)


def test_influence_of_layers_listed_within_a_stack() -> None:
    def model(p: Any, x: jax.Array) -> jax.Array:
        def step(x: jax.Array, p: Any) -> Any:
            return layer(layer(x, p["a"]["w"]), p["b"]["w"]), None

        out: jax.Array = jax.lax.scan(step, x, p)[0]
        return out

    params = {"a": {"w": WEIGHTS[::2]}, "b": {"w": WEIGHTS[1::2]}}
    scores = score_blocks(model, params, X, blocks=["a", "b"])
    means = wanted(FORWARD).reshape(2, 2).mean(axis=0)
    np.testing.assert_allclose([scores["a"], scores["b"]], means, rtol=1e-5)


def test_rows_without_a_direction() -> None:
    """Nothing stays nothing; what nothing becomes, and what becomes nothing, is far."""

    def model(p: Any, x: jax.Array) -> jax.Array:
        return (x + p["a"]["b"][None]) * p["b"]["s"][None]

    x = jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    params = {"a": {"b": jnp.asarray([0.0, 0.0])}, "b": {"s": jnp.asarray([0.0, 0.0])}}
    scores = score_blocks(model, params, x, blocks=["a", "b"])
    np.testing.assert_allclose([scores["a"], scores["b"]], [0, 0.5], atol=1e-15)
    params["a"]["b"] = jnp.asarray([0.0, 1.0])
    # The second row turns from (3, 4) to (3, 5).
    turned = 1 - 29 / (5 * np.sqrt(34))
    scores = score_blocks(model, params, x, blocks=["a"])
    np.testing.assert_allclose(scores["a"], (1 + turned) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    "by", [*KINDS[:2], MetricDrop(lambda result: -jnp.sum(jnp.square(result[0])))]
)
def test_layers_with_caches_among_the_arguments(by: Importance) -> None:
    """A layer's part of an argument and of a result goes with the layer."""

    def model(p: Any, x: jax.Array, cache: jax.Array) -> Any:
        def step(x: jax.Array, given: Any) -> Any:
            w, past = given
            x = layer(x, w) + past[None]
            return x, past + jnp.mean(x, axis=0)

        return jax.lax.scan(step, x, (p["w"], cache))

    params, cache = {"w": WEIGHTS}, WEIGHTS[:, 0]
    free = ShrinkableAxes(model, inputs={1: [0]}, outputs={1: [0]})
    groups = find_groups(free, params, X, cache)
    (group,) = groups
    arguments = (params, X, cache)
    scores = score_layers(model, *arguments, groups=groups, stacks=[group.name], by=by)[
        group.name
    ]

    whole = model(*arguments)
    values = [X]
    for number in FORWARD:
        values.append(layer(values[-1], WEIGHTS[number]) + cache[number][None])
    for number in FORWARD:
        rest = np.delete(np.arange(4), number)
        out, caches = model({"w": WEIGHTS[rest]}, X, cache[rest])
        wanted: Any = apart(values[number], values[number + 1]).mean()
        if isinstance(by, OutputSimilarity):
            means = apart(out, whole[0]).mean(), apart(caches, whole[1][rest]).mean()
            wanted = np.mean(means)
        elif isinstance(by, MetricDrop):
            wanted = by.metric(whole) - by.metric((out, caches))
        np.testing.assert_allclose(scores[number], wanted, rtol=1e-4)


def test_compressed_layers_are_scored_as_they_are() -> None:
    fn = SCANS["plain"][0]
    groups = find_groups(fn, {"w": WEIGHTS}, X)
    small = quantize({"w": WEIGHTS}, [(..., Quantize())], sites=groups.sites)
    scores = score_layers(fn, small, X, groups=groups, stacks=["w:0"])
    dense = {"w": small["w"].dense()}
    same = score_layers(fn, dense, X, groups=groups, stacks=["w:0"])
    np.testing.assert_allclose(scores["w:0"], same["w:0"], rtol=1e-6)


def test_the_examples_run() -> None:
    failed, attempted = doctest.testmod(importance)
    assert not failed
    assert attempted > 10


def test_wrong_input() -> None:
    def wide(p: Any, x: jax.Array) -> Any:
        return jnp.argmax(jnp.tanh(scan(x, p["w"]) @ p["up"]) @ p["down"], axis=-1)

    params = {"w": WEIGHTS, "up": jnp.ones((3, 4)), "down": jnp.ones((4, 2))}
    found = find_groups(wide, params, X)
    score = functools.partial(score_layers, wide, params, X, groups=found)
    with pytest.raises(MismatchError, match=r"list of names of groups, not 'w:0'"):
        score(stacks="w:0")
    with pytest.raises(MismatchError, match=r"no group 'v:0'; the groups are .*w:0"):
        score(stacks=["v:0"])
    with pytest.raises(
        MismatchError, match=r"over the units of 'up:1'; .* are \['w:0'"
    ):
        score(stacks=["up:1"])
    with pytest.raises(TypeError, match=r"by is BlockInfluence\(\), .*, not 'cosine'"):
        score(stacks=["w:0"], by="cosine")
    with pytest.raises(
        MismatchError, match="score_layers: the result has no array of fl"
    ):
        score(stacks=["w:0"], by=OutputSimilarity())
    with pytest.raises(
        MismatchError, match=r"MetricDrop's metric gives an array .* \["
    ):
        score(stacks=["w:0"], by=MetricDrop(lambda result: result))
    with pytest.raises(MismatchError, match=r"w:0 has 4 positions .* is \[3, 3, 3\]"):
        score_layers(
            wide, {**params, "w": WEIGHTS[:3]}, X, groups=found, stacks=["w:0"]
        )
    with pytest.raises(MismatchError, match=r"w:0 has 4 positions .* is missing"):
        score_layers(
            lambda p, x: x @ p["up"],
            {"up": params["up"]},
            X,
            groups=found,
            stacks=["w:0"],
        )

    def summed(p: Any, x: jax.Array) -> jax.Array:
        def step(total: jax.Array, w: jax.Array) -> Any:
            return total + jnp.sum(x @ w), None

        out: jax.Array = jax.lax.scan(step, jnp.float32(0), p["w"])[0]
        return out

    with pytest.raises(
        MismatchError, match="layers of 'w:0' carries no array of floats"
    ):
        score_layers(
            summed, params, X, groups=find_groups(summed, params, X), stacks=["w:0"]
        )

    @jax.custom_vjp
    def sealed(p: Any, x: jax.Array) -> jax.Array:
        return layer(layer(x, p["a"]["w"]), p["b"]["w"])

    sealed.defvjp(lambda p, x: (sealed(p, x), p), lambda p, g: (p, g))
    pair = {"a": {"w": WEIGHTS[0]}, "b": {"w": WEIGHTS[1]}}
    with pytest.raises(MismatchError, match="'a' and 'b/w' are in one function with a"):
        score_blocks(sealed, pair, X, blocks=["a"])
    with pytest.raises(
        MismatchError, match="skipped: the block 'a' and 'b/w' are in one"
    ):
        skipped(sealed, ["a"])(pair, X)

    closed = jax.custom_vjp(SCANS["plain"][0])
    closed.defvjp(lambda p, x: (closed(p, x), p), lambda p, g: (p, g))
    stack = {"w": WEIGHTS}
    found = find_groups(closed, stack, X)
    with pytest.raises(
        MismatchError, match="of 'w:0' is in a function with a gradient"
    ):
        score_layers(closed, stack, X, groups=found, stacks=["w:0"])
    with pytest.raises(MismatchError, match=r"score_blocks: no leaf is below 'c'"):
        score_blocks(sealed, pair, X, blocks=["c"])

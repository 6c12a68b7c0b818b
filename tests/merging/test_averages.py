"""Means of weights: soups, task arithmetic, over training, after alignment."""

import doctest
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jcompress import checkpoint
from jcompress.errors import MismatchError
from jcompress.merging import (
    add_tasks,
    align,
    aligning,
    average,
    average_weights,
    averaging,
    during,
    greedy_soup,
)
from jcompress.quantization import Quantize, quantize
from jcompress.shrinking.permuting import host_arrays
from jcompress.sites import find_sites

A = {"w": jnp.array([1.0, 2.0]), "b": jnp.array([4.0], jnp.bfloat16), "n": 3}
B = {"w": jnp.array([3.0, 8.0]), "b": jnp.array([2.0], jnp.bfloat16), "n": 3}


def test_means_of_trees() -> None:
    mean = average([A, B])
    assert mean["w"].tolist() == [2, 5]
    assert (mean["b"].dtype, float(mean["b"][0]), mean["n"]) == (jnp.bfloat16, 3, 3)
    assert average([A, B], weights=[0.75, 0.25])["w"].tolist() == [1.5, 3.5]
    jitted = jax.jit(lambda a, b: average([a, b]))({"w": A["w"]}, {"w": B["w"]})
    assert jitted["w"].tolist() == [2, 5]


def test_task_arithmetic() -> None:
    base = {"w": jnp.zeros(2), "b": jnp.zeros(1, jnp.bfloat16), "n": 3}
    assert add_tasks(base, [A, B])["w"].tolist() == [4, 10]
    assert add_tasks(base, [A, B], amounts=[-1, 0.5])["w"].tolist() == [0.5, 2]
    np.testing.assert_allclose(add_tasks(A, [A], amounts=0.3)["w"], A["w"], rtol=1e-6)


def test_a_greedy_soup_is_never_worse_than_its_best() -> None:
    trees = [{"w": jnp.array(w)} for w in ([0.0, 3.0], [0.0, -2.0], [9.0, 9.0])]

    def score(tree: Any) -> float:
        return -float(jnp.sum(jnp.square(tree["w"])))

    soup = greedy_soup(trees, score)
    assert soup.members == (1, 0)
    assert soup.params["w"].tolist() == [0, 0.5]
    assert soup.score == score(soup.params) == -0.25
    assert greedy_soup(trees, score, scores=[1, 0, 2]).members == (2,)
    with pytest.raises(ValueError, match="a score is not a number"):
        greedy_soup(trees, score, scores=[1, float("nan"), 2])


@pytest.mark.parametrize("decay", [None, 0.5, lambda count: 0.5])
def test_averages_over_training_against_a_loop(decay: Any, tmp_path: Any) -> None:
    average_of = average_weights(decay, start=2, every=3)
    optimizer = optax.chain(optax.sgd(0.1), average_of)
    params = {"w": jnp.array([1.0, -2.0], jnp.bfloat16)}
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    seen: list[Any] = []
    for number in range(12):
        updates, state = step(params, state, params)
        params = optax.apply_updates(params, updates)
        now = np.asarray(params["w"], np.float32)
        if number + 1 > 2 and (number + 1 - 3) % 3 == 0:
            seen.append(now)
        found = optax.tree.get(state, "average")["w"]
        assert found.dtype == jnp.float32
        if not seen:
            np.testing.assert_array_equal(found, now)
            continue
        mean = seen[0]
        for more in seen[1:]:
            mean = 0.5 * mean + 0.5 * more
        if decay is None:
            mean = np.mean(seen, axis=0)
        np.testing.assert_allclose(found, mean, rtol=1e-5)
    assert len(seen) == 4
    checkpoint.save(tmp_path / "state", state)
    loaded = checkpoint.load(tmp_path / "state", like=state)
    jax.tree.map(np.testing.assert_array_equal, loaded, state)


class Network(nn.Module):
    """A convolution with a batch norm, attention and a residual stream."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(8, (3,))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.Dense(12)(x)
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=8)(nn.LayerNorm()(x))
        return nn.Dense(3)(nn.gelu(nn.Dense(10)(nn.LayerNorm()(x)))).mean(1)


def shuffled(tree: Any, groups: Any, seed: int) -> Any:
    """The tree with the units of every group in another order, by a loop."""
    draw, moved = np.random.default_rng(seed), dict(host_arrays(tree))
    for group in groups:
        order = draw.permutation(group.size)
        for member in group.members:
            leaf, units = moved[member.path], member.units
            front = np.moveaxis(leaf.copy(), member.axis, 0)
            new = front.copy()
            for unit in range(group.size):
                new[units == unit] = front[units == order[unit]]
            moved[member.path] = np.moveaxis(new, 0, member.axis)
    flat, treedef = jax.tree.flatten(tree)
    assert len(flat) == len(moved)
    return jax.tree.unflatten(treedef, [jnp.asarray(leaf) for leaf in moved.values()])


def test_a_shuffled_model_comes_back_into_order() -> None:
    model, x = Network(), jax.random.normal(jax.random.key(0), (2, 5, 4))
    params = model.init(jax.random.key(1), x)
    groups = aligning.find_groups(model.apply, params, x)
    assert len(groups) >= 5
    other = shuffled(params, groups, 7)
    wanted = model.apply(params, x)
    np.testing.assert_allclose(model.apply(other, x), wanted, atol=1e-5)
    far = average([params, other])
    assert float(jnp.abs(model.apply(far, x) - wanted).max()) > 0.05
    found = align(model.apply, other, params, x, key=jax.random.key(2))
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_what_depends_on_the_order_of_units_is_refused() -> None:
    def model(params: Any, x: jax.Array) -> jax.Array:
        return jnp.cumsum(x @ params["up"], axis=-1) @ params["down"]

    keys = jax.random.split(jax.random.key(0), 4)
    ours, theirs = (
        {"up": jax.random.normal(a, (4, 6)), "down": jax.random.normal(b, (6, 2))}
        for a, b in (keys[:2], keys[2:])
    )
    with pytest.raises(MismatchError, match=r"order of the units|no units that could"):
        align(model, ours, theirs, jnp.ones((3, 4)), key=keys[0])


def test_trees_that_do_not_fit() -> None:
    with pytest.raises(MismatchError, match="average: there is no tree"):
        average([])
    with pytest.raises(MismatchError, match="'b' is in one only"):
        average([A, {"w": A["w"], "n": 3}])
    with pytest.raises(
        MismatchError, match=r"'w' is float32 \[2\] in tree 0 and float"
    ):
        average([A, {**A, "w": jnp.ones(3)}])
    with pytest.raises(ValueError, match=r"weights sum to 1\.5"):
        average([A, B], weights=[1, 0.5])
    with pytest.raises(ValueError, match="one finite number for each of 2 trees"):
        average([A, B], weights=[1])
    with pytest.raises(MismatchError, match="there is no tuned tree"):
        add_tasks(A, [])
    with pytest.raises(ValueError, match="amounts are one finite number"):
        add_tasks(A, [B], amounts=[1, 2])
    weight = {"w": jnp.ones((4, 4))}
    model = lambda params, x: x @ params["w"]  # noqa: E731
    sites = find_sites(model, weight, jnp.ones((1, 4)))
    small = quantize(weight, [("w", Quantize())], sites=sites)
    with pytest.raises(MismatchError, match="'w' is a QTensor; merge the dense"):
        average([small, small])
    with pytest.raises(MismatchError, match="no units that could be permuted"):
        align(model, weight, weight, jnp.ones((1, 4)), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"decay is in \[0, 1\), not 1"):
        average_weights(1.0)
    with pytest.raises(ValueError, match="every is an int from 1 on, not 0"):
        average_weights(every=0)


@pytest.mark.parametrize("module", [aligning, averaging, during])
def test_the_examples_run(module: Any) -> None:
    done = doctest.testmod(module)
    assert done.attempted
    assert not done.failed

"""Axes of arguments and results that may shrink with the parameters."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress import checkpoint
from jcompress.errors import MismatchError
from jcompress.shrinking import (
    Plan,
    ShrinkableAxes,
    cut_inputs,
    cut_outputs,
    find_groups,
    shrink,
    shrunk,
    zero_units,
)

FAST = {"xla_backend_optimization_level": 0}


def normal(*shape: int, seed: int = 0) -> jax.Array:
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(rng.normal(size=shape).astype(np.float32))


TREE = {"a": normal(5, 6), "b": normal(6, 4), "bias": normal(4)}
X = normal(3, 5, seed=1)


def mlp(tree: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ tree["a"]) @ tree["b"] + tree["bias"][None]


BOTH = ShrinkableAxes(mlp, inputs={0: [-1]}, outputs={(): [1]})


def filled(shapes: Any) -> Any:
    return jax.tree.map(lambda x: 0.5 * normal(*x.shape, seed=x.size), shapes)


def run(fn: Callable[..., Any], *args: Any) -> Any:
    return jax.jit(fn, compiler_options=FAST)(*args)


def test_features_and_classes_shrink() -> None:
    groups = find_groups(BOTH, TREE, X)
    assert {g.name: g.size for g in groups} == {"a:0": 5, "a:1": 6, "b:1": 4}
    assert str(groups["a:0"]).splitlines()[-1] == "  argument 0:1 (5): dot_general"
    assert str(groups["b:1"]).splitlines()[-1] == "  result:1 (4): add"
    plan = groups.keep({"a:0": [0, 2, 3], "a:1": [1, 2, 5], "b:1": [0, 3]})
    small = shrink(TREE, plan)
    assert jax.tree.map(jnp.shape, small) == {"a": (3, 3), "b": (3, 2), "bias": (2,)}

    (cut,), keywords = cut_inputs(plan, X)
    assert keywords == {}
    np.testing.assert_array_equal(cut, X[:, np.array([0, 2, 3])])
    masked = X * jnp.asarray([[1, 0, 1, 1, 0]], jnp.float32)
    wanted = run(mlp, zero_units(TREE, plan), masked)
    found = run(shrunk(mlp, plan), small, cut)
    np.testing.assert_allclose(found, cut_outputs(plan, wanted), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, run(mlp, small, cut), rtol=1e-5, atol=1e-6)


def test_only_what_is_named_shrinks() -> None:
    groups = find_groups(ShrinkableAxes(mlp, outputs={(): [-1]}), TREE, X)
    assert [g.name for g in groups] == ["a:1", "b:1"]
    assert groups.fixed["a:0"] == "argument 0, by dot_general"
    assert [g.name for g in find_groups(mlp, TREE, X)] == ["a:1"]


def test_axes_that_something_else_fixes() -> None:
    def fn(tree: Any, x: jax.Array) -> jax.Array:
        return jnp.cumsum(mlp(tree, x), axis=1)

    groups = find_groups(ShrinkableAxes(fn, outputs={(): [1]}), TREE, X)
    assert groups.fixed["b:1"] == "cumsum"
    assert "result:1" in groups.fixed


def test_units_that_no_leaf_has_are_left_out() -> None:
    """Of the batch any size will do, so that no plan is needed."""
    free = ShrinkableAxes(mlp, inputs={0: [0, 1]}, outputs={(): [0]})
    assert [g.name for g in find_groups(free, TREE, X)] == ["a:0", "a:1"]


def nested(tree: Any, data: Any, *, mask: jax.Array) -> Any:
    x = data["x"] * mask
    return {"out": mlp(tree, x), "mask": mask}


def test_arrays_in_trees_and_keywords() -> None:
    """The mask has the features, too, so that it must be allowed to lose some."""
    mask = jnp.asarray([[1, 0, 1, 1, 1]], jnp.float32)
    free = ShrinkableAxes(nested, inputs={(0, "x"): [1]}, outputs={"out": [-1]})
    args, keywords = ({"x": X, "name": "a"},), {"mask": mask}
    groups = find_groups(free, TREE, *args, **keywords)
    assert "a:0" in groups.fixed
    free = ShrinkableAxes(
        nested,
        inputs={(0, "x"): [1], "mask": [1]},
        outputs={"out": [-1], "mask": [1]},
    )
    groups = find_groups(free, TREE, *args, **keywords)
    plan = groups.keep({"a:0": [0, 1, 4], "b:1": [1]})
    given, named = cut_inputs(plan, *args, **keywords)
    assert named["mask"].tolist() == [[1, 0, 1]]
    assert given[0]["name"] == "a"
    found = shrunk(nested, plan)(shrink(TREE, plan), *given, **named)
    masked = {"x": X * jnp.asarray([[1, 1, 0, 0, 1]], jnp.float32)}
    wanted = cut_outputs(plan, nested(zero_units(TREE, plan), masked, mask=mask))
    np.testing.assert_allclose(found["out"], wanted["out"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["mask"], wanted["mask"])


def test_two_plans_are_one() -> None:
    """What is free stays free in the shrunk function."""
    first = find_groups(BOTH, TREE, X).keep({"a:0": [0, 1, 4], "b:1": [0, 1, 3]})
    small, once = shrink(TREE, first), shrunk(BOTH, first)
    assert isinstance(once, ShrinkableAxes)
    (cut,), _ = cut_inputs(first, X)
    second = find_groups(once, small, cut).keep({"a:0": [1, 2], "b:1": [2]})
    whole = first.then(second)
    assert whole.inputs["0"][1].tolist() == [False, True, False, False, True]
    assert whole.outputs[""][1].tolist() == [False, False, False, True]
    (least,), _ = cut_inputs(whole, X)
    np.testing.assert_array_equal(least, cut_inputs(second, cut)[0][0])
    smaller = shrink(small, second)
    np.testing.assert_allclose(
        shrunk(once, second)(smaller, least),
        shrunk(mlp, whole)(shrink(TREE, whole), least),
        rtol=1e-5,
    )


def test_plan_goes_through_a_checkpoint(tmp_path: pathlib.Path) -> None:
    plan = find_groups(BOTH, TREE, X).keep({"a:0": [0, 1], "b:1": [2, 3]})
    checkpoint.save(tmp_path / "plan", plan)
    loaded = Plan.from_tree(checkpoint.load(tmp_path / "plan"))
    for kind in ("kept", "masks", "inputs", "outputs"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(loaded, kind), getattr(plan, kind)
        )


@pytest.fixture(scope="module")
def plan() -> Plan:
    return find_groups(BOTH, TREE, X).keep({"a:0": [0, 1, 2], "b:1": [1]})


def test_arguments_that_were_not_cut(plan: Plan) -> None:
    small = shrink(TREE, plan)
    words = "argument 0:1: the plan is for 3 positions of the shrunk function, "
    with pytest.raises(
        MismatchError, match=words + r".*\[3, 5\]; `cut_inputs` cuts it"
    ):
        shrunk(mlp, plan)(small, X)
    with pytest.raises(
        MismatchError, match=r"argument 0:1: .* 5 positions of the dense"
    ):
        cut_inputs(plan, X[:, :3])
    with pytest.raises(MismatchError, match=r"result:1: .* 4 positions of the dense"):
        cut_outputs(plan, X)
    with pytest.raises(MismatchError, match="has no argument '0'; it has x"):
        shrunk(lambda tree, *, x: mlp(tree, x), plan)(small, x=X[:, :3])


def test_function_that_fixes_an_argument_that_the_plan_cuts(plan: Plan) -> None:
    def sums(tree: Any, x: jax.Array) -> jax.Array:
        return jnp.cumsum(x, axis=1)

    with pytest.raises(MismatchError, match="argument 0:1 cannot shrink: cumsum fixes"):
        shrunk(sums, plan)(shrink(TREE, plan), X[:, :3])


@pytest.mark.parametrize(
    ("free", "words"),
    [
        ({"inputs": {"x": [1]}}, "no argument 'x' that is an array; it has 0"),
        ({"outputs": {0: [1]}}, "no result 0 that is an array; it has ()"),
        ({"inputs": {"0": [1]}}, "no argument '0' that is an array; it has 0"),
        ({"outputs": {(): [2]}}, "result:2 cannot shrink: its shape is [3, 4]"),
        ({"inputs": {0: [-3]}}, "argument 0:-3 cannot shrink: its shape is [3, 5]"),
    ],
)
def test_axes_that_are_not_there(free: Any, words: str) -> None:
    with pytest.raises(MismatchError, match=re.escape(words)):
        find_groups(ShrinkableAxes(mlp, **free), TREE, X)


def test_free_of_nothing_or_in_another_form_is_refused() -> None:
    for wrong in ([(1,)], {0: 1}, {0: "1"}):
        with pytest.raises(
            TypeError, match="ShrinkableAxes: inputs gives axes by place"
        ):
            ShrinkableAxes(mlp, inputs=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inputs names an array twice"):
        ShrinkableAxes(mlp, inputs={0: [0], (0,): [1]})
    with pytest.raises(ValueError, match="ShrinkableAxes: name an axis"):
        ShrinkableAxes(mlp, outputs={(): []})


class Net(nn.Module):
    """Convolutions over images; the result is a vector of features."""

    channels: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = nn.relu(nn.Conv(self.channels, (3, 3))(x))
            x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(self.features)(x.reshape(len(x), -1))


def test_image_channels_and_features_of_a_cnn() -> None:
    model, x = Net(4, 6), normal(2, 6, 6, 3)
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), x))
    free = ShrinkableAxes(model.apply, inputs={0: [-1]}, outputs={(): [-1]})
    groups = find_groups(free, variables, x)
    kernels = ("Conv_0/kernel:2", "Conv_0/kernel:3", "Conv_1/kernel:3")
    names = [f"params/{name}" for name in (*kernels, "Dense_0/kernel:1")]
    assert {g.name for g in groups} == set(names)
    kept = ([0, 2], [1, 2], [0, 3], [0, 4, 5])
    plan = groups.keep(dict(zip(names, kept, strict=True)))
    small = shrink(variables, plan)
    (cut,), _ = cut_inputs(plan, x)
    found = run(shrunk(model.apply, plan), small, cut)
    masked = x * jnp.asarray([1, 0, 1], jnp.float32).reshape(1, 1, 1, 3)
    wanted = cut_outputs(plan, run(model.apply, zero_units(variables, plan), masked))
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    native = run(Net(2, 3).apply, small, cut)
    np.testing.assert_allclose(found, native, rtol=1e-4, atol=1e-5)


class Encoder(nn.Module):
    """A layer of attention; the result is the residual stream of every word."""

    width: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(11, self.width)(ids)
        attention = nn.MultiHeadDotProductAttention(
            num_heads=2, qkv_features=8, out_features=self.width
        )
        x = nn.LayerNorm()(x + attention(x, x))
        y = nn.gelu(nn.Dense(10)(x))
        return nn.LayerNorm()(x + nn.Dense(self.width)(y))


def test_the_stream_of_an_encoder_is_its_result() -> None:
    model, ids = Encoder(12), jnp.asarray([[1, 4, 2], [0, 9, 9]], jnp.int32)
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), ids))
    stream = "params/Dense_1/kernel:1"
    assert stream in find_groups(model.apply, variables, ids).fixed
    free = ShrinkableAxes(model.apply, outputs={(): [-1]})
    groups = find_groups(free, variables, ids)
    assert groups[stream].size == 12
    assert groups[stream].reduced
    assert [(m.path, m.axis) for m in groups[stream].outputs] == [("", 2)]
    plan = groups.keep({stream: [0, 1, 3, 4, 7, 8, 11]})
    small = shrink(variables, plan)
    shapes = jax.eval_shape(Encoder(7).init, jax.random.key(0), ids)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, shapes)
    found = run(shrunk(free, plan), small, ids)
    assert found.shape == (2, 3, 7)
    wanted = run(Encoder(7).apply, small, ids)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)

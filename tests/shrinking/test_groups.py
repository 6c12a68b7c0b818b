"""Ids through single operations, and what is said of plans that cannot be."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.errors import MismatchError
from jcompress.formats import Int
from jcompress.pruning.scores import score_by_magnitude
from jcompress.shrinking.groups import Groups, find_groups
from jcompress.shrinking.plan import Plan, shrink, shrunk, zero_units
from jcompress.shrinking.scoring import score_units
from jcompress.tensors import QTensor

FAST = {"xla_backend_optimization_level": 0}


def normal(*shape: int, seed: int = 0) -> jax.Array:
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(rng.normal(size=shape).astype(np.float32))


X = normal(4, 3, seed=1)
KEEP = [0, 2, 5]

Op = Callable[[jax.Array], jax.Array]


def between(op: Op) -> tuple[Callable[..., jax.Array], dict[str, jax.Array]]:
    """A function of two dense layers with an operation between, and its tree."""

    def fn(tree: Any, x: jax.Array) -> jax.Array:
        return op(x @ tree["a"]) @ tree["b"]

    a = normal(3, 6)
    outs = jax.eval_shape(op, jax.ShapeDtypeStruct((4, 6), jnp.float32))
    return fn, {"a": a, "b": normal(outs.shape[-1], 2, seed=2)}


def compare(
    fn: Callable[..., Any],
    tree: Any,
    plan: Plan,
    *args: Any,
    native: bool = False,
    gradients: bool = True,
) -> None:
    """The shrunk function, and its gradients, are those of the masked one.

    Args:
        fn: the function.
        tree: its parameters.
        plan: what is removed.
        args: its other arguments.
        native: the function reads all sizes from its inputs, so that it runs on the
            small tree by itself; what that gives is expected.
        gradients: compare them, too.
    """

    def results(fn: Callable[..., Any], tree: Any) -> Any:
        def total(tree: Any) -> Any:
            return jnp.sum(jnp.sin(fn(tree, *args)))

        return fn(tree, *args), jax.grad(total)(tree) if gradients else tree

    def both(tree: Any) -> Any:
        small = shrink(tree, plan)
        found = results(shrunk(fn, plan), small)
        if native:
            return found, results(fn, small)
        out, grads = results(fn, zero_units(tree, plan))
        return found, (out, shrink(grads, plan))

    found, wanted = jax.jit(both, compiler_options=FAST)(tree)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        # Of terms that cancel the size counts.
        size = max(1.0, float(jnp.abs(b).max(initial=0)))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * size)


def mirrored(x: jax.Array) -> jax.Array:
    return x[:, ::-1]


def padded(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 2)), constant_values=0.5)


def permuted(x: jax.Array) -> jax.Array:
    return jnp.take(x, jnp.asarray([5, 4, 3, 2, 1, 0]), axis=1)


def rows_taken(x: jax.Array) -> jax.Array:
    return x[jnp.asarray([3, 1, 1])]


def taken_along(x: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, jnp.zeros((2, 6), jnp.int32), axis=0)


def row_at(x: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, jnp.argmax(X[:, 0]), 2, 0)


def rows_set(x: jax.Array) -> jax.Array:
    return jnp.zeros((7, x.shape[1]), x.dtype).at[jnp.asarray([1, 5, 2, 0])].set(x)


def rows_added(x: jax.Array) -> jax.Array:
    return (
        jnp.ones((7, x.shape[1]), x.dtype).at[jnp.asarray([1, 5, 1, 0])].add(x) * x[:1]
    )


def row_updated(x: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, 2 * x[1:2], 2, 0)


def counted(x: jax.Array) -> jax.Array:
    return x * jnp.arange(1, 1 + x.shape[1], dtype=x.dtype)[None]


def weighed(x: jax.Array) -> jax.Array:
    return x * normal(6)[None]


def mixed(x: jax.Array) -> jax.Array:
    return jnp.sin(x @ normal(6, 4))


def sampled(x: jax.Array) -> jax.Array:
    drawn = jax.random.bernoulli(jax.random.key(0), 1.0, x.shape)
    return jnp.where(drawn, x, jnp.zeros_like(x))


def looped(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y + x), x)


def until(x: jax.Array) -> jax.Array:
    return jax.lax.while_loop(
        lambda state: state[0] < 3, lambda s: (s[0] + 1, s[1] * x), (0, x)
    )[1]


def branched(x: jax.Array) -> jax.Array:
    return jax.lax.cond(jnp.sum(X) > 0, jnp.tanh, lambda x: x * x, x)


def heads(x: jax.Array) -> jax.Array:
    """Pairs are heads."""
    y = x.reshape(4, 3, 2)
    return jnp.einsum("bhd,chd->bch", y, y).reshape(4, -1)


def interleaved(x: jax.Array) -> jax.Array:
    return jnp.stack([x, 2 * x], axis=-1).reshape(4, -1)


def repeated(x: jax.Array) -> jax.Array:
    return jnp.repeat(x, 2, axis=1)


def tiled(x: jax.Array) -> jax.Array:
    return jnp.tile(x, (1, 2))


def copied(x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(x[:, None], (len(x), 2, 6)).reshape(len(x), -1)


def taken_apart(x: jax.Array) -> jax.Array:
    return jnp.stack([row * row for row in jnp.unstack(x)])


def gated(x: jax.Array) -> jax.Array:
    a, b = jnp.split(x, 2, axis=1)
    return jnp.concatenate([a * b, a], axis=1)


def strided(x: jax.Array) -> jax.Array:
    return x[:, ::2]


def one_by_itself(x: jax.Array) -> jax.Array:
    return jnp.concatenate([x, x[:, 2:3] ** 2], axis=1)


def cast(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jax.lax.bitcast_convert_type(bits ^ jnp.int32(-(2**31)), jnp.float32)


def chosen(x: jax.Array) -> jax.Array:
    return jnp.where(X[:, :1] > 0, x, jnp.zeros_like(x)).clip(-1, 1)


def kept_dimensions(x: jax.Array) -> jax.Array:
    return x - x.mean(axis=0, keepdims=True)


def pooled(x: jax.Array) -> jax.Array:
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (2, 1), (2, 1), "VALID")


@jax.custom_vjp
def clipped(x: jax.Array) -> jax.Array:
    return jnp.clip(x, -0.5, 0.5)


def _clipped_forward(x: jax.Array) -> Any:
    return clipped(x), (x, jnp.arange(x.size, dtype=x.dtype).reshape(x.shape))


def _clipped_backward(kept: Any, g: jax.Array) -> Any:
    # Of its own, so that it shows which rule was used; it has sizes in it.
    x, _ = kept
    return (jnp.broadcast_to(g, (4, 6)) * (1 + x * x) + jnp.zeros((4, 6), x.dtype),)


clipped.defvjp(_clipped_forward, _clipped_backward)


@jax.custom_jvp
def bent(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


@bent.defjvp
def _bent_rule(primals: Any, tangents: Any) -> Any:
    return bent(*primals), tangents[0] * (3 + jnp.zeros((4, 6), jnp.float32))


# Number of units of the group of `a:1`, and of all groups.
OPERATIONS: dict[Op, tuple[int, int]] = {
    mirrored: (6, 1),
    padded: (6, 2),
    rows_taken: (6, 1),
    row_updated: (6, 1),
    rows_set: (6, 1),
    rows_added: (6, 1),
    counted: (6, 1),
    weighed: (6, 1),
    mixed: (6, 2),
    sampled: (6, 1),
    looped: (6, 1),
    until: (6, 1),
    branched: (6, 1),
    heads: (3, 1),
    interleaved: (6, 1),
    repeated: (6, 1),
    tiled: (6, 1),
    copied: (6, 1),
    taken_apart: (6, 1),
    taken_along: (6, 1),
    row_at: (6, 1),
    gated: (3, 1),
    one_by_itself: (5, 1),
    cast: (6, 1),
    chosen: (6, 1),
    kept_dimensions: (6, 1),
    pooled: (6, 1),
    clipped: (6, 1),
    bent: (6, 1),
}


@pytest.mark.parametrize("op", OPERATIONS, ids=lambda op: op.__name__)
def test_operation(op: Op) -> None:
    fn, tree = between(op)
    groups = find_groups(fn, tree, X)
    units, count = OPERATIONS[op]
    assert groups["a:1"].size == units
    assert groups["a:1"].reduced is None
    assert len(groups) == count
    kept = {g.name: np.arange(g.size)[:: 2 if g.size > 2 else 1] for g in groups}
    # No gradient comes back through a loop of unknown length.
    compare(fn, tree, groups.keep(kept), X, gradients=op is not until)


def test_parts_of_an_axis_that_are_used_apart_are_groups_apart() -> None:
    fn, tree = between(strided)
    groups = find_groups(fn, tree, X)
    sizes = {g.name: (g.size, len(g.members)) for g in groups}
    assert sizes == {"a:1": (3, 2), "a:1#2": (3, 1)}
    compare(fn, tree, groups.keep({"a:1": [0, 2], "a:1#2": [1]}), X)


FIXED: dict[str, Op] = {
    "gather": permuted,
    "cumsum": lambda x: jnp.cumsum(x, axis=1),
    "sort": lambda x: jnp.sort(x, axis=1),
    "argmax": lambda x: x * jnp.argmax(x, axis=1, keepdims=True).astype(x.dtype),
    "reduce_window": lambda x: jax.lax.reduce_window(
        x, 0.0, jax.lax.add, (1, 2), (1, 2), "VALID"
    ),
    "dynamic_slice": lambda x: jax.lax.dynamic_slice_in_dim(
        x, jnp.argmax(X[:, 0]), 2, 1
    ),
    "fft": lambda x: jnp.abs(jnp.fft.fft(x)),
    "scatter": lambda x: x.at[:, jnp.asarray([1, 2])].set(0.0),
    "top_k": lambda x: jax.lax.top_k(x, 2)[0],
}


@pytest.mark.parametrize("word", FIXED)
def test_what_fixes_an_axis_is_said(word: str) -> None:
    fn, tree = between(FIXED[word])
    groups = find_groups(fn, tree, X)
    assert word in groups.fixed["a:1"]
    with pytest.raises(
        MismatchError, match=rf"a:1 cannot shrink: {word}\S* .*fixes it"
    ):
        groups.keep({"a:1": [0]})


def standardised(x: jax.Array, ddof: int) -> jax.Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.var(x, axis=-1, keepdims=True, ddof=ddof) + 0.1)


NORMALISED: dict[str, Op] = {
    "mean": lambda x: x - jnp.mean(x, axis=1, keepdims=True),
    "mean of squares": lambda x: x * jax.lax.rsqrt(jnp.mean(x * x, 1, keepdims=True)),
    "sum times reciprocal": lambda x: (
        x - jnp.sum(x, 1, keepdims=True) * (1 / x.shape[1])
    ),
    "variance": lambda x: standardised(x, 0),
    "variance with ddof": lambda x: standardised(x, 1),
    "mean of both axes": lambda x: x / (2 + jnp.mean(jnp.abs(x))),
    "softmax": lambda x: jax.nn.softmax(x, axis=1),
    "most": lambda x: x / jnp.max(jnp.abs(x), axis=1, keepdims=True),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_reductions_are_opt_in_and_count_what_is_left(name: str) -> None:
    fn, tree = between(NORMALISED[name])
    groups = find_groups(fn, tree, X)
    assert "reduce_" in str(groups["a:1"].reduced)
    compare(fn, tree, groups.keep({"a:1": KEEP}), X, native=True)


def test_grouped_convolution_loses_whole_groups() -> None:
    def fn(tree: Any, x: jax.Array) -> jax.Array:
        dims = ("NHWC", "HWIO", "NHWC")
        y = x @ tree["a"]
        y = jax.lax.conv_general_dilated(
            y, tree["k"], (1, 1), "SAME", dimension_numbers=dims, feature_group_count=3
        )
        return jnp.einsum("nhwc,cd->nd", jnp.tanh(y), tree["b"])

    tree = {"a": normal(3, 6), "k": normal(3, 3, 2, 12), "b": normal(12, 2)}
    x = normal(2, 4, 4, 3)
    groups = find_groups(fn, tree, x)
    (group,) = groups
    assert {(m.path, m.axis): m.units.tolist() for m in group.members} == {
        ("a", 1): [0, 0, 1, 1, 2, 2],
        ("k", 3): [0] * 4 + [1] * 4 + [2] * 4,
        ("b", 0): [0] * 4 + [1] * 4 + [2] * 4,
    }
    assert "conv_general_dilated" in groups.fixed["k:2"]
    compare(fn, tree, groups.keep({group.name: [0, 2]}), x)


def test_table_looked_up() -> None:
    def fn(tree: Any, ids: jax.Array) -> jax.Array:
        return tree["table"][ids] @ tree["b"]

    tree = {"table": normal(9, 6), "b": normal(6, 2)}
    ids = jnp.asarray([[1, 8, 1], [0, 3, 2]])
    groups = find_groups(fn, tree, ids)
    assert [g.name for g in groups] == ["table:1"]
    assert "gather" in groups.fixed["table:0"]
    compare(fn, tree, groups.keep({"table:1": KEEP}), ids)


def test_ragged_product() -> None:
    def fn(tree: Any, x: jax.Array, sizes: jax.Array) -> jax.Array:
        y = jax.lax.ragged_dot(x, tree["up"], sizes)
        return jax.lax.ragged_dot(jnp.tanh(y), tree["down"], sizes)

    tree = {"up": normal(2, 3, 6), "down": normal(2, 6, 5)}
    args = X, jnp.asarray([3, 1], jnp.int32)
    groups = find_groups(fn, tree, *args)
    assert [g.name for g in groups] == ["up:2"]
    assert "ragged_dot" in groups.fixed["up:0"]
    compare(fn, tree, groups.keep({"up:2": KEEP}), *args)


def test_results_that_are_leaves_again_shrink_with_them() -> None:
    def fn(tree: Any, x: jax.Array) -> Any:
        y = x @ tree["a"]
        return y @ tree["b"], {"seen": 0.9 * tree["seen"] + 0.1 * jnp.mean(y, 0)}

    tree = {"a": normal(3, 6), "b": normal(6, 2), "seen": normal(6)}
    groups = find_groups(fn, tree, X)
    assert {(m.path, m.axis) for m in groups["a:1"].members} == {
        ("a", 1),
        ("b", 0),
        ("seen", 0),
    }
    plan = groups.keep({"a:1": KEEP})
    out, state = shrunk(fn, plan)(shrink(tree, plan), X)
    wanted, whole = fn(zero_units(tree, plan), X)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state["seen"], whole["seen"][np.array(KEEP)], rtol=1e-5)


def test_shapes_are_enough() -> None:
    fn, tree = between(jnp.tanh)
    shapes = jax.eval_shape(lambda: tree)
    plan = find_groups(fn, shapes, jax.eval_shape(lambda: X)).keep({"a:1": KEEP})
    small = shrink(shapes, plan)
    assert jax.tree.map(lambda x: x.shape, small) == {"a": (3, 3), "b": (3, 2)}
    assert jax.eval_shape(shrunk(fn, plan), small, X).shape == (4, 2)
    assert plan.widths == {"a:1": 3, "b:0": 3}


def test_leaves_without_use_make_no_groups() -> None:
    def fn(params: Any, x: jax.Array) -> Any:
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2)), "idle": jnp.ones((5, 6))}
    groups = find_groups(fn, params, jnp.ones((2, 3)))
    assert [group.name for group in groups] == ["a:1"]
    with pytest.raises(
        MismatchError, match="idle:0 cannot shrink: no use in this func"
    ):
        groups.keep({"idle:0": [0]})


def test_prints_itself() -> None:
    fn, tree = between(lambda x: jnp.tanh(x) - jnp.mean(x, axis=1, keepdims=True))
    text = str(find_groups(fn, tree, X)).splitlines()
    assert text == [
        "a:1: 6 units; reduced over by reduce_sum: opt-in",
        "  a:1 (6): dot_general",
        "  b:0 (6): dot_general",
        "fixed a:0: argument 0, by dot_general",
        "fixed b:1: the function's result",
    ]


def test_an_argument_on_the_residual_stream_is_named() -> None:
    def fn(tree: Any, x: jax.Array, *, more: Any) -> jax.Array:
        with jax.named_scope("block"):
            h = x @ tree["a"] + jnp.tanh(2 * more["shift"])
        return jax.nn.relu(h) @ tree["b"]

    tree = {"a": normal(3, 6), "b": normal(6, 2)}
    fixed = find_groups(fn, tree, X, more={"shift": normal(4, 6)}).fixed
    assert fixed == {
        "a:0": "argument 0, by dot_general in block",
        "a:1": "argument more/shift, by add in block",
        "b:0": "argument more/shift, by add in block",
        "b:1": "the function's result",
    }
    fixed = find_groups(
        lambda tree, x, y: (x * y) * tree["a"], {"a": normal(4, 3)}, X, normal(4, 3)
    ).fixed
    assert fixed["a:1"] == "argument 0 and argument 1, by mul"


def test_an_operation_that_fixes_is_named_and_not_the_argument_beside_it() -> None:
    fn, tree = between(lambda x: jnp.cumsum(x, axis=1) + X[:, :1])
    assert find_groups(fn, tree, X).fixed["a:1"] == "cumsum"


@pytest.fixture(scope="module")
def model() -> tuple[Callable[..., jax.Array], dict[str, jax.Array], Groups]:
    fn, tree = between(jnp.tanh)
    return fn, tree, find_groups(fn, tree, X)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({"a:1": []}, r"a:1 would become empty \(a:1 \(6\): dot_general\)"),
        ({"a:1": [1, 2, 1]}, r"a:1: the units \[1\] are given twice \(.*dot_general"),
        (
            {"a:1": [1, 6]},
            r"a:1: units are numbered 0 to 5, not 1 to 6 \(.*dot_general",
        ),
        ({"a:1": [-1, 2]}, r"a:1: units are numbered 0 to 5, not -1 to 2"),
        ({"a:1": [0.5]}, r"a:1: the units to keep are a list of integers"),
        ({"a:1": 3}, r"a:1: the units to keep are a list of integers"),
        ({"a:1": [True] * 6}, r"a:1: the units to keep are a list of integers"),
        ({"a:0": [0]}, r"a:0 cannot shrink: argument 0, by dot_general fixes"),
        ({"b:1": [0]}, r"b:1 cannot shrink: the function's result fixes it"),
        ({"b:0": [0]}, r"b:0 belongs to the group 'a:1'; use that name"),
        ({"c:0": [0]}, r"there is no group 'c:0'; the groups are a:1"),
        ({"a:1": range(6)}, r"removes nothing"),
        ({}, r"removes nothing"),
    ],
)
def test_plans_that_cannot_be(model: Any, kept: Any, words: str) -> None:
    with pytest.raises(MismatchError, match=words):
        model[2].keep(kept)


def test_plan_for_another_model(model: Any) -> None:
    fn, tree, groups = model
    plan = groups.keep({"a:1": KEEP})
    other = {"first": tree["a"], "second": tree["b"]}
    with pytest.raises(MismatchError, match=r"has no leaf 'a'; it has first, second"):
        shrink(other, plan)
    wide = {"a": normal(3, 8), "b": normal(8, 2)}
    words = r"a:1: the plan is for 6 positions of the dense tree, .*\[3, 8\]"
    for transform in (shrink, zero_units):
        with pytest.raises(MismatchError, match=words):
            transform(wide, plan)
    with pytest.raises(MismatchError, match=r"a:1: .* 3 positions of the shrunk tree"):
        shrunk(fn, plan)(tree, X)
    flat = {"a": normal(3), "b": tree["b"]}
    with pytest.raises(MismatchError, match=r"a:1: the plan is for 6 .*\[3\]"):
        shrink(flat, plan)


def test_function_that_fixes_what_the_plan_shrinks(model: Any) -> None:
    _, tree, groups = model
    plan = groups.keep({"a:1": KEEP})
    sums, _ = between(lambda x: jnp.cumsum(x, axis=1))
    words = r"a:1 cannot shrink: cumsum fixes it in this function"
    with pytest.raises(MismatchError, match=words):
        shrunk(sums, plan)(shrink(tree, plan), X)

    def hidden(tree: Any, x: jax.Array) -> jax.Array:
        return x @ tree["a"] + jnp.sum(tree["b"])

    wanted = hidden(zero_units(tree, plan), X)[:, np.array(KEEP)]
    found = shrunk(hidden, plan)(shrink(tree, plan), X)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_compressed_leaf_is_refused(model: Any) -> None:
    _, tree, groups = model
    plan = groups.keep({"a:1": KEEP})
    quantized = QTensor(
        values=jnp.ones((6, 3), jnp.int8),
        scales=jnp.ones((6, 1), jnp.float32),
        format=Int(8),
        shape=(3, 6),
        dtype=np.dtype(np.float32),
        output_axes=(1,),
        input_axes=(0,),
    )
    with pytest.raises(MismatchError, match=r"'a' is a QTensor; shrink the dense tree"):
        shrink({**tree, "a": quantized}, plan)


def test_plans_that_do_not_follow_each_other(model: Any) -> None:
    _, _, groups = model
    plan = groups.keep({"a:1": KEEP})
    with pytest.raises(MismatchError, match=re.escape("a:1: the first plan leaves 3")):
        plan.then(plan)


@pytest.mark.parametrize("tree", [{}, {"kept": {}}, {"kept": {}, "masks": {}, "x": 1}])
def test_trees_that_are_no_plan(tree: Any) -> None:
    with pytest.raises(
        MismatchError, match="a plan has the entries 'kept' and 'masks'"
    ):
        Plan.from_tree(tree)


MASK = jnp.arange(1.0, 13.0).reshape(2, 1, 6) / 6
TABLE = jnp.arange(6.0).reshape(1, 6) + 1


def _masked(p: Any, x: jax.Array) -> jax.Array:
    mask = jnp.ones((2, 1, 6)) * MASK  # made in the function: (layers, 1, units)
    for i, block in enumerate("ab"):
        x = x + (jnp.tanh(x @ p[block]["up"]) * mask[i]) @ p[block]["down"]
    return x


def _closed_over(p: Any, x: jax.Array) -> jax.Array:
    for block in "ab":
        x = x + (jnp.tanh(x @ p[block]["up"]) * TABLE) @ p[block]["down"]
    return x


def _numbered(p: Any, x: jax.Array) -> jax.Array:
    slopes = jax.lax.broadcasted_iota(jnp.float32, (1, 6), 1) / 6

    @jax.jit
    def call(x: jax.Array, up: jax.Array, slopes: jax.Array) -> jax.Array:
        return jnp.tanh(x @ up) * slopes

    for block in "ab":
        x = x + call(x, p[block]["up"], slopes) @ p[block]["down"]
    return x


def _looped(p: Any, x: jax.Array) -> jax.Array:
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), p["a"], p["b"])

    def step(carry: Any, block: Any) -> Any:
        x, rest = carry
        h = jnp.tanh(x @ block["up"]) * TABLE + rest
        return (x + h @ block["down"], jnp.zeros((1, 6))), None

    (x, _), _ = jax.lax.scan(step, (x, jnp.zeros((1, 6))), stacked)
    return x


def _branched(p: Any, x: jax.Array) -> jax.Array:
    for block in "ab":
        h = jax.lax.cond(
            x.sum() > 0,
            lambda h: jnp.tanh(h),
            lambda h: TABLE * jnp.ones((3, 1)),
            x @ p[block]["up"],
        )
        x = x + (h * h) @ p[block]["down"]
    return x


@pytest.mark.parametrize(
    "model", [_masked, _closed_over, _numbered, _looped, _branched]
)
def test_layers_that_read_one_constant_are_not_tied(model: Callable[..., Any]) -> None:
    """What depends on no leaf and no input may be cut for each use by itself."""
    keys = iter(jax.random.split(jax.random.key(0), 4))
    params = {
        block: {
            "up": jax.random.normal(next(keys), (8, 6)),
            "down": jax.random.normal(next(keys), (6, 8)),
        }
        for block in "ab"
    }
    x = jax.random.normal(jax.random.key(1), (3, 8))
    groups = find_groups(model, params, x)
    names = [group.name for group in groups]
    assert names == (["a/up:1"] if model is _looped else ["a/up:1", "b/up:1"])
    plan = groups.keep({"a/up:1": [0, 2, 5]})
    small = shrunk(model, plan)
    np.testing.assert_allclose(
        jax.jit(small)(shrink(params, plan), x),
        model(zero_units(params, plan), x),
        rtol=2e-5,
        atol=1e-5,
    )


def _segments(h: jax.Array) -> jax.Array:
    return jax.ops.segment_max(h, jnp.array([0, 1, 1, 0]), 2)


def _products(h: jax.Array) -> jax.Array:
    return jax.ops.segment_prod(1 + h, jnp.array([0, 1, 1, 0]), 2)


def _squares(h: jax.Array) -> jax.Array:
    """[4, units] -> [units, 4, 4], of which each is positive definite."""
    columns = h.T[:, :, None]
    return columns @ columns.swapaxes(1, 2) + jnp.eye(4)[None]


MAPPED: dict[str, Callable[[jax.Array], jax.Array]] = {
    "fft": lambda h: jnp.fft.irfft(jnp.fft.rfft(h, axis=0), axis=0),
    "fft by vmap": lambda h: jax.vmap(
        lambda one: jnp.abs(jnp.fft.fft(one)), in_axes=1, out_axes=1
    )(h),
    "top_k": lambda h: jax.lax.top_k(h.T, 2)[0].T,
    "approx_max_k": lambda h: jax.lax.approx_max_k(h.T, 2)[0].T,
    "segment_max": _segments,
    "segment_prod": lambda h: _products(h) - 1,
    "cholesky": lambda h: jnp.linalg.cholesky(_squares(h))[:, :, 0].T - 1,
    "eigh": lambda h: jnp.linalg.eigh(_squares(h))[0].T - 1,
    "svd": lambda h: jnp.linalg.svd(_squares(h), compute_uv=False).T - 1,
    "qr": lambda h: jnp.linalg.qr(_squares(h))[1][:, 0].T,
    "cho_solve": lambda h: (
        jax.scipy.linalg.cho_solve(
            (jnp.linalg.cholesky(_squares(h)), True), h.T[:, :, None]
        )[:, :, 0].T
    ),
}


@pytest.mark.parametrize("name", MAPPED)
def test_axes_that_an_operation_maps_over_stay_free(name: str) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "up": jax.random.normal(keys[0], (5, 6)),
        "down": jax.random.normal(keys[1], (6, 2)),
    }
    x = jax.random.normal(keys[2], (4, 5))

    def model(p: Any, x: jax.Array) -> jax.Array:
        return MAPPED[name](x @ p["up"]) @ p["down"]

    groups = find_groups(model, params, x)
    assert [(group.name, group.size) for group in groups] == [("up:1", 6)]
    plan = groups.keep({"up:1": [0, 3, 4]})
    np.testing.assert_allclose(
        shrunk(model, plan)(shrink(params, plan), x),
        model(zero_units(params, plan), x),
        rtol=1e-4,
        atol=1e-4,
    )


@jax.custom_vjp
def _at_a_time(w: jax.Array, t: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w) * t


def _forward(w: Any, t: Any, x: Any) -> Any:
    assert not t.perturbed, "the time is not differentiable"
    return _at_a_time(w.value, t.value, x.value), (w.value, t.value, x.value)


def _backward(kept: Any, g: jax.Array) -> Any:
    w, t, x = kept
    _, back = jax.vjp(lambda w, x: jnp.tanh(x @ w) * t, w, x)
    d_w, d_x = back(g)
    return d_w, None, d_x


_at_a_time.defvjp(_forward, _backward, symbolic_zeros=True)


@jax.custom_jvp
def _scaled(h: jax.Array, t: jax.Array) -> jax.Array:
    return h * h * t


def _derivative(primals: Any, tangents: Any) -> Any:
    (h, t), (d_h, d_t) = primals, tangents
    zero = isinstance(d_t, jax.custom_derivatives.SymbolicZero)
    assert zero, "the time is not differentiable"
    return _scaled(h, t), 2 * h * d_h * t


_scaled.defjvp(_derivative, symbolic_zeros=True)


def test_only_what_is_differentiated_is_perturbed() -> None:
    """Rules of gradients may refuse inputs with respect to which nobody asks."""

    def model(p: Any, x: jax.Array) -> jax.Array:
        time = jnp.float32(0.5)
        return _scaled(_at_a_time(p["a"], time, x), time) @ p["b"]

    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "a": jax.random.normal(keys[0], (4, 8)),
        "b": jax.random.normal(keys[1], (8, 3)),
    }
    x = jax.random.normal(keys[2], (5, 4))
    plan = find_groups(model, params, x).keep({"a:1": [0, 2, 5]})

    def gradient(fn: Callable[..., Any], tree: Any) -> Any:
        return jax.grad(lambda tree: (fn(tree, x) ** 2).sum())(tree)

    wanted = shrink(gradient(model, zero_units(params, plan)), plan)
    found = gradient(shrunk(model, plan), shrink(params, plan))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found,
        wanted,
    )


def test_complex_leaves_score_by_modulus_and_shrink() -> None:
    keys = jax.random.split(jax.random.key(0), 4)

    def number(key: jax.Array, *shape: int) -> jax.Array:
        return jax.random.normal(key, shape, jnp.complex64)

    params = {"up": number(keys[0], 4, 6), "down": number(keys[1], 6, 3)}
    x = number(keys[2], 5, 4)

    def model(p: Any, x: jax.Array) -> jax.Array:
        return jnp.real((x @ p["up"]) @ p["down"])

    groups = find_groups(model, params, x)
    scores = score_units(groups, score_by_magnitude(params))
    wanted = np.abs(params["up"]).sum(0) + np.abs(params["down"]).sum(1)
    np.testing.assert_allclose(scores["up:1"], wanted, rtol=1e-6)
    plan = groups.keep({"up:1": [0, 2, 5]})
    np.testing.assert_allclose(
        shrunk(model, plan)(shrink(params, plan), x),
        model(zero_units(params, plan), x),
        rtol=1e-4,
        atol=1e-5,
    )

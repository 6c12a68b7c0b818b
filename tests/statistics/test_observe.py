"""`observe` against NumPy on the rows that each matrix is multiplied with."""

import doctest
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax.sharding import AxisType, PartitionSpec

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.leaves import named_leaves
from jcompress.quantization import Quantize, quantize
from jcompress.sites import find_sites, leaf_axes
from jcompress.statistics import (
    AbsoluteMax,
    Count,
    DiagonalMoments,
    Histogram,
    Means,
    PowerHistogram,
    Ranges,
    SecondMoments,
    Several,
    Zeros,
    observe,
    observing,
)
from jcompress.tensors.axes import to_matrix

rng = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


ALL = Several(
    Count(),
    SecondMoments(),
    DiagonalMoments(),
    Means(),
    Means(absolute=True),
    AbsoluteMax(),
    Ranges(),
    Histogram(low=-1, high=1, bins=7),
    Histogram(low=-1, high=1, bins=7, each=True),
    PowerHistogram(lowest=-4, highest=1),
    Zeros(),
    Zeros(below=0.5),
)


def by_hand(x: np.ndarray) -> tuple[Any, ...]:
    """The same in NumPy, of rows [M, K]."""
    x = x.astype(np.float64)
    size = np.abs(x)
    edges = [-np.inf, *np.linspace(-1, 1, 8)[1:-1], np.inf]
    powers = [0, *2.0 ** np.arange(-3, 2), np.inf]
    return (
        len(x),
        x.T @ x,
        (x**2).sum(0),
        (x.sum(0), len(x)),
        (size.sum(0), len(x)),
        size.max(0, initial=0),
        (x.min(0, initial=np.inf), x.max(0, initial=-np.inf)),
        np.histogram(x, edges)[0],
        np.stack([np.histogram(column, edges)[0] for column in x.T]),
        np.histogram(size, powers)[0],
        ((x == 0).sum(0), len(x)),
        ((size <= 0.5).sum(0), len(x)),
    )


class Case(NamedTuple):
    """A function, and the rows [M, K] that each copy of its leaves meets, in order."""

    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    rows: Mapping[str, list[Any]]


def dense() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        x = jnp.einsum("bti,hdi->bthd", x, p["heads"] * 2)
        x = jnp.tanh(jnp.einsum("bthd,hde->bte", x, p["out"]))
        return jnp.tanh(x @ p["tied"]) @ p["tied"]

    p = {"heads": normal(2, 3, 4), "out": normal(2, 3, 5), "tied": normal(5, 5)}
    x = normal(2, 3, 4)
    first = jnp.einsum("bti,hdi->bthd", x, p["heads"] * 2).reshape(6, 6)
    second = jnp.tanh(first @ p["out"].reshape(6, 5))
    third = jnp.tanh(second @ p["tied"])
    rows = {
        "heads": [x.reshape(6, 4)],
        "out": [first],
        "tied": [jnp.concatenate([second, third])],
    }
    return Case(fn, p, (x,), rows)


def stacks() -> Case:
    """Layers of a scan, each with two experts that see rows of their own."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        @jax.checkpoint
        def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(jnp.einsum("eti,eio->eto", x, w)), None

        x, _ = jax.lax.scan(layer, x, p["w"])
        last = jax.lax.scan(lambda x, _: (x @ p["v"], None), x, None, length=2)[0]
        return last

    p, x = {"w": normal(3, 2, 4, 4), "v": normal(4, 4) / 2}, normal(2, 5, 4)
    rows: dict[str, list[Any]] = {"w": [], "v": []}
    y = x
    for w in p["w"]:
        rows["w"] += list(y)
        y = jnp.tanh(jnp.einsum("eti,eio->eto", y, w))
    rows["v"] = [jnp.concatenate([y, y @ p["v"]]).reshape(20, 4)]
    return Case(fn, p, (x,), rows)


def loops() -> Case:
    """A while loop, a branch that is taken and one that is not."""

    def fn(p: Any, x: jax.Array, n: jax.Array) -> jax.Array:
        def goes_on(state: Any) -> jax.Array:
            return (state[0] < n) & (jnp.max(state[1] @ p["u"]) < 1e3)

        def step(state: Any) -> Any:
            return state[0] + 1, jnp.tanh(state[1] @ p["w"])

        _, x = jax.lax.while_loop(goes_on, step, (jnp.int32(0), x))
        return jax.lax.cond(n > 1, lambda x: x @ p["w"], lambda x: x @ p["v"], x)

    p = {"w": normal(4, 4), "v": normal(4, 4), "u": normal(4, 2)}
    x = normal(5, 4)
    once = jnp.tanh(x @ p["w"])
    twice = jnp.tanh(once @ p["w"])
    every = jnp.concatenate([x, once, twice])
    rows = {"w": [every], "u": [every], "v": [x[:0]]}
    return Case(fn, p, (x, jnp.asarray(2)), rows)


def convolution() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            p["k"],
            (2, 1),
            ((1, 0), (0, 2)),
            rhs_dilation=(1, 2),
            dimension_numbers=("NHWC", "HWIO", "NCHW"),
        )

    p, x = {"k": normal(3, 2, 4, 5)}, normal(2, 6, 5, 4)
    padded = np.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)))
    patches = [
        padded[n, i : i + 3, j : j + 3 : 2].ravel()
        for n in range(2)
        for i in range(0, 5, 2)
        for j in range(5)
    ]
    np.testing.assert_allclose(
        (np.stack(patches) @ p["k"].reshape(24, 5)).sum(0),
        fn(p, x).sum((0, 2, 3)),
        rtol=1e-4,
        atol=1e-4,
    )
    return Case(fn, p, (x,), {"k": [np.stack(patches)]})


def grouped() -> Case:
    """A convolution of two groups, whose kernel has its channels in the middle."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            p["k"],
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HIWO", "NHWC"),
            feature_group_count=2,
        )

    p, x = {"k": normal(2, 3, 2, 4)}, normal(2, 4, 3, 6)
    patches = np.stack(
        [
            np.asarray(x)[n, i : i + 2, j : j + 2].transpose(0, 2, 1)
            for n in range(2)
            for i in range(3)
            for j in range(2)
        ]
    )
    rows = [patches[:, :, c : c + 3].reshape(12, 12) for c in (0, 3)]
    outs = [
        r @ p["k"].reshape(12, 4)[:, n : n + 2]
        for r, n in zip(rows, (0, 2), strict=True)
    ]
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(
        np.concatenate(outs, axis=1), fn(p, x).reshape(12, 4), **close
    )
    return Case(fn, p, (x,), {"k": rows})


def experts() -> Case:
    """Four experts, one without rows, and two rows that none takes."""

    def fn(p: Any, x: jax.Array, sizes: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(jax.lax.ragged_dot(x, w.transpose(0, 2, 1), sizes)), None

        return jax.lax.scan(layer, x, p["w"])[0]

    p, x, sizes = {"w": normal(2, 4, 3, 3)}, normal(9, 3), np.asarray([2, 0, 4, 1])
    rows, y = [], x
    for layer in p["w"]:
        groups = np.split(y, np.cumsum(sizes))
        rows += groups[:4]
        outs = [g @ w.T for g, w in zip(groups, layer, strict=False)]
        y = jnp.tanh(jnp.concatenate([*outs, jnp.zeros((2, 3))]))
    return Case(fn, p, (x, jnp.asarray(sizes)), {"w": rows})


def mesh() -> Case:
    """Data apart along one axis of a mesh, the same along the other."""
    devices = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    split, whole = PartitionSpec("data"), PartitionSpec()

    def fn(p: Any, x: jax.Array) -> jax.Array:
        def local(p: Any, x: jax.Array) -> jax.Array:
            x = jax.lax.fori_loop(
                0, jnp.asarray(2), lambda _, x: jnp.tanh(x @ p["w"]), x
            )
            return x @ p["v"]

        mapped = jax.shard_map(
            local, mesh=devices, in_specs=(whole, split), out_specs=split
        )
        return mapped(p, x)

    p, x = {"w": normal(4, 4), "v": normal(4, 3)}, normal(6, 4)
    once = jnp.tanh(x @ p["w"])
    rows = {"w": [jnp.concatenate([x, once])], "v": [jnp.tanh(once @ p["w"])]}
    return Case(fn, p, (x,), rows)


CASES = {
    build.__name__: build
    for build in (dense, stacks, loops, convolution, grouped, experts, mesh)
}


def assert_same(got: Any, rows: list[Any]) -> None:
    wanted = [by_hand(np.asarray(each)) for each in rows]
    stacked = jax.tree.map(lambda *each: np.stack(each), *wanted)
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(
            np.reshape(g, np.shape(w)), w, rtol=1e-5, atol=1e-5
        ),
        tuple(map(tuple_of, got)),
        stacked,
    )


def tuple_of(value: Any) -> Any:
    return tuple(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", CASES)
def test_against_numpy(name: str) -> None:
    case = CASES[name]()
    observed = observe(case.fn, [(..., True)], ALL)
    outs, stats = jax.jit(observed)(case.params, *case.args)
    np.testing.assert_allclose(
        outs, case.fn(case.params, *case.args), rtol=1e-4, atol=1e-4
    )
    assert set(stats) == set(case.rows)
    for path, rows in case.rows.items():
        sites = find_sites(case.fn, case.params, *case.args).of(path)
        stacks = [sites[0].shape[axis] for axis in leaf_axes(sites).stack]
        groups = [2] if name == "grouped" else []
        inputs = rows[0].shape[1]
        assert stats[path][1].shape == (*stacks, *groups, inputs, inputs)
        assert_same(stats[path], rows)


@pytest.mark.parametrize(
    "name",
    ["linen_transformer_remat", "nnx_cnn_eval", "while_until_converged"],
)
def test_inputs_and_outputs_of_whole_models_agree(name: str) -> None:
    """The sum of the squared results of a matrix W is the diagonal of W (x x^T) W^T."""
    model = zoo.build(name)
    leaves = dict(named_leaves(model.variables))
    sites = find_sites(model.fn, model.variables, *model.args)
    rules = [(lambda site: bool(sites.products(site.path)), True)]

    @jax.jit
    def run(variables: Any, *args: Any) -> Any:
        inputs = observe(model.fn, rules, SecondMoments())
        results = observe(model.fn, rules, DiagonalMoments(), outputs=True)
        return inputs(variables, *args)[1], results(variables, *args)[1]

    moments, squares = run(model.variables, *model.args)
    assert len(moments) >= 2
    for path, moment in moments.items():
        w = to_matrix(jnp.asarray(leaves[path]), leaf_axes(sites.of(path)))
        if moment.ndim > w.ndim:
            w = w.reshape(*moment.shape[:-2], -1, w.shape[-1])
        got = jnp.einsum("...nk,...kl,...nl->...n", w, moment, w)
        wanted = squares[path].reshape(got.shape)
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4 * wanted.max())


def test_batches_add_up_in_constant_memory() -> None:
    p, batches = {"w": normal(4, 3)}, normal(5, 6, 4)
    observed = observe(lambda p, x: x @ p["w"], [("w", True)], ALL)

    @jax.jit
    def stream(batches: jax.Array) -> Any:
        start = jax.eval_shape(observed, p, batches[0])[1].empty()
        step = lambda stats, x: (stats + observed(p, x)[1], None)  # noqa: E731
        return jax.lax.scan(step, start, batches)[0]

    stats = stream(batches)
    assert_same(stats["w"], [batches.reshape(30, 4)])
    mean = stats["w"][3].mean
    np.testing.assert_allclose(mean, batches.mean((0, 1)), rtol=1e-4, atol=1e-6)
    shapes = [
        jax.tree.map(jnp.shape, jax.eval_shape(observed, p, normal(rows, 4))[1]["w"])
        for rows in (1, 1000)
    ]
    assert shapes[0] == shapes[1] == jax.tree.map(jnp.shape, stats["w"])
    each = jax.vmap(observed, in_axes=(None, 0))(p, batches)[1]
    assert_same(each.reduce()["w"], [batches.reshape(30, 4)])
    other = observe(lambda p, x: x @ p["w"], [("w", True)], Count())
    with pytest.raises(MismatchError, match="do not add up"):
        stats + other(p, batches[0])[1]


def test_outputs() -> None:
    case = stacks()
    params = {**case.params, "h": normal(2, 3, 4), "k": normal(3, 1, 1, 4)}

    def fn(p: Any, x: jax.Array) -> Any:
        y = jnp.einsum("hdi,eti->ehtd", p["h"], x)
        numbers = ("NWHC", "OWHI", "CNWH")
        image = x[:, :, None, :]
        z = jax.lax.conv_general_dilated(
            image, p["k"], (1, 1), "VALID", dimension_numbers=numbers
        )
        return case.fn(p, x), y, z

    (x,) = case.args
    _, stats = jax.jit(observe(fn, [(..., True)], ALL, outputs=True))(params, x)
    layers = case.rows["w"]
    outs = [
        rows @ w for rows, w in zip(layers, params["w"].reshape(6, 4, 4), strict=True)
    ]
    assert_same(stats["w"], outs)
    flat = x.reshape(10, 4)
    assert_same(stats["h"], [flat @ params["h"].reshape(6, 4).T])
    assert_same(stats["k"], [flat @ params["k"].reshape(3, 4).T])


def test_gradients_and_compression_pass_through() -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(x @ p["w"]))

    p, x = {"w": normal(32, 8)}, normal(5, 32)
    observed = observe(fn, [("w", True)], SecondMoments())
    gradient, stats = jax.grad(observed, has_aux=True)(p, x)
    expected = jax.grad(fn)(p, x)["w"]
    np.testing.assert_allclose(gradient["w"], expected, rtol=1e-5, atol=1e-6)
    small = quantize(p, [("w", Quantize())], sites=find_sites(fn, p, x))
    for run in (compressed(observed), observed):
        np.testing.assert_allclose(run(small, x)[1]["w"], stats["w"], rtol=1e-5)


def test_a_statistic_of_ones_own() -> None:
    class Nonzero:
        """How often each input is not zero."""

        def of(self, rows: jax.Array, valid: jax.Array | None) -> jax.Array:
            assert valid is None
            return jnp.sum(rows != 0, axis=0)

        def empty(self, like: Any) -> Any:
            return jnp.zeros(like.shape, like.dtype)

        def join(self, a: Any, b: Any) -> Any:
            return a + b

        def reduce(self, stacked: Any) -> Any:
            return jnp.sum(stacked, axis=0)

        def across(self, value: Any, axis_names: tuple[str, ...]) -> Any:
            return jax.lax.psum(value, axis_names)

    x = jnp.asarray([[1.0, 0.0], [2.0, 3.0]])
    observed = observe(lambda p, x: x @ p["w"], [("w", True)], Nonzero())
    assert observed({"w": jnp.ones((2, 1))}, x)[1]["w"].tolist() == [2, 1]


@jax.custom_vjp
def sealed(w: jax.Array, x: jax.Array) -> jax.Array:
    return x @ w


sealed.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, y: kept)


P = {"w": normal(4, 4), "t": normal(4, 4)}
WRONG: dict[str, tuple[Any, Any, str]] = {
    "sealed": (lambda p, x: sealed(p["w"], x), normal(2, 4), "'w' .* custom gradient"),
    "two weights": (lambda p, x: x + p["w"] @ p["t"], normal(4, 4), "another param"),
    "lookup": (lambda p, x: p["t"][x], jnp.asarray([1]), "t take part in no product"),
    "both sides": (
        lambda p, x: x @ p["w"] + x @ p["w"].T,
        normal(2, 4),
        "'w' .* sum over other axes",
    ),
    "one matrix": (
        lambda p, x: x @ jnp.concatenate([p["w"], p["t"]]),
        normal(2, 8),
        "several leaves are joined",
    ),
}


@pytest.mark.once
@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    fn, x, message = WRONG[name]
    with pytest.raises(MismatchError, match="observe: .*" + message):
        observe(fn, [(..., True)], Count())(P, x)


@pytest.mark.once
def test_bad_bins() -> None:
    with pytest.raises(ValueError, match="is not below"):
        Histogram(low=1, high=1)
    with pytest.raises(ValueError, match="at least one bin"):
        Histogram(low=0, high=1, bins=0)
    with pytest.raises(ValueError, match="is negative"):
        Zeros(below=-1.0)
    with pytest.raises(ValueError, match="exceeds"):
        PowerHistogram(lowest=1, highest=0)
    assert Histogram(low=0, high=1, bins=2).edges.tolist() == [0, 0.5, 1]
    assert PowerHistogram(lowest=-1, highest=0).edges.tolist() == [0.5, 1, 2]


@pytest.mark.once
def test_the_example_runs() -> None:
    failed, attempted = doctest.testmod(observing)
    assert attempted
    assert not failed

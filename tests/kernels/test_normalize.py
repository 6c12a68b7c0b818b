"""`normalize` in every implementation, against float64, and under transforms."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jcompress.kernels import Implementation, _native, export_checks, normalize

WAYS = [None, Implementation.REFERENCE, Implementation.XLA, Implementation.CPU]
SHAPES = [(1, 1), (3, 7), (2, 5, 16), (70, 33), (1, 384), (2, 3, 1), (0, 8), (2000, 40)]


def normal(*shape: int, seed: int = 0) -> jax.Array:
    numbers = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray((2 * numbers + 1).astype(np.float32))


def expected(x: Any, scale: Any, bias: Any, residual: Any, **how: Any) -> Any:
    total = np.asarray(x, np.float64)
    if residual is not None:
        total = np.asarray(x + residual, np.float64)
    rows = total
    if how["centered"]:
        rows = rows - rows.mean(axis=-1, keepdims=True)
    square = np.square(rows).mean(axis=-1, keepdims=True)
    y = rows / np.sqrt(square + how["epsilon"])
    y = y if scale is None else y * np.asarray(scale, np.float64)
    return (y if bias is None else y + np.asarray(bias, np.float64)), total


def skip_without_library(way: Implementation | None) -> None:
    if way is Implementation.CPU and _native.missing():
        pytest.skip(_native.missing())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("centered", [True, False])
def test_numbers(shape: Any, centered: bool, way: Implementation | None) -> None:
    skip_without_library(way)
    x, residual = normal(*shape), normal(*shape, seed=1)
    scale, bias = normal(shape[-1], seed=2), normal(shape[-1], seed=3)
    how: dict[str, Any] = {"epsilon": 1e-5, "centered": centered}
    run = jax.jit(functools.partial(normalize, implementation=way, **how))
    whole = jax.jit(
        functools.partial(normalize, implementation=way, keep_sum=True, **how)
    )
    for given in ((scale, bias, residual), (None, bias, None), (scale, None, residual)):
        wanted, total = expected(x, *given, **how)
        got = run(x, given[0], given[1], residual=given[2])
        top = np.abs(wanted).max(initial=1e-3)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * top)
        y, kept = whole(x, given[0], given[1], residual=given[2])
        np.testing.assert_array_equal(y, got)
        np.testing.assert_array_equal(kept, total.astype(np.float32))


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_are_far_from_zero(way: Implementation | None) -> None:
    skip_without_library(way)
    x = normal(4, 64) + 1000
    wanted, _ = expected(x, None, None, None, epsilon=0.0, centered=True)
    got = normalize(x, epsilon=0.0, implementation=way)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_constant_and_infinite_rows(way: Implementation | None) -> None:
    skip_without_library(way)
    x = jnp.stack([jnp.full(9, 3.0), jnp.zeros(9), jnp.full(9, jnp.inf), normal(9)])
    y = np.asarray(normalize(x, epsilon=1e-6, implementation=way))
    np.testing.assert_array_equal(y[:2], np.zeros((2, 9)))
    assert np.isnan(y[2]).all()
    assert np.isfinite(y[3]).all()


def test_other_dtypes_take_the_portable_form() -> None:
    x = normal(3, 8).astype(jnp.bfloat16)
    assert normalize(x).dtype == jnp.bfloat16
    with pytest.raises(NotImplementedError, match=r"float32 only|not installed"):
        normalize(x, implementation=Implementation.CPU)


def value(x: jax.Array, scale: jax.Array, residual: jax.Array, way: Any) -> Any:
    y = normalize(x, scale, residual=residual, implementation=way)
    return jnp.sum(jnp.sin(y))


def test_gradients_in_both_directions() -> None:
    given = normal(3, 8), normal(8, seed=1), normal(3, 8, seed=2)
    way = Implementation.REFERENCE
    for derive in (
        lambda f: jax.grad(f, (0, 1, 2)),
        lambda f: jax.jacfwd(f, (0, 1, 2)),
        lambda f: jax.grad(lambda *a: jnp.sum(jnp.square(jax.grad(f)(*a)))),
    ):
        got = jax.jit(derive(functools.partial(value, way=None)))(*given)
        wanted = jax.jit(derive(functools.partial(value, way=way)))(*given)
        for one, other in zip(
            jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


@pytest.mark.parametrize("axes", [(0, None, 0), (0, None, None), (None, 0, None)])
def test_mapped(axes: tuple[int | None, ...]) -> None:
    sizes = ((3, 8), (8,), (3, 8))
    given = [
        normal(*((4, *size) if axis == 0 else size), seed=number)
        for number, (size, axis) in enumerate(zip(sizes, axes, strict=True))
    ]

    def one(way: Any) -> Any:
        return jax.vmap(
            lambda x, s, r: normalize(x, s, residual=r, implementation=way), axes
        )(*given)

    np.testing.assert_allclose(one(None), one(Implementation.XLA), rtol=0, atol=4e-6)


def test_devices_each_have_rows() -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    x = normal(4, 6, 16)
    placed = jax.device_put(x, NamedSharding(mesh, P("data")))
    np.testing.assert_allclose(
        jax.jit(normalize)(placed), normalize(x), rtol=0, atol=2e-6
    )


def test_each_device_for_itself() -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    x = normal(4, 16)
    run = jax.shard_map(normalize, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_allclose(jax.jit(run)(x), normalize(x), rtol=0, atol=2e-6)


def test_sizes_that_are_not_known() -> None:
    (rows,) = jax.export.symbolic_shape("n")
    written = jax.export.export(jax.jit(normalize), disabled_checks=export_checks())(
        jax.ShapeDtypeStruct((rows, 12), jnp.float32)
    )
    x = normal(5, 12)
    got = jax.export.deserialize(written.serialize()).call(x)
    np.testing.assert_allclose(got, normalize(x), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones((2, 3), jnp.int32)}, "x is floats"),
        ({"scale": jnp.ones(4)}, r"scale has one number for each .* \[3\]"),
        ({"residual": jnp.ones((1, 3))}, "residual is of the shape and dtype of x"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"x": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=message):
        normalize(**{**given, **change})


def test_no_such_implementation() -> None:
    with pytest.raises(NotImplementedError, match=r"has no Implementation\.TPU"):
        normalize(jnp.ones((2, 3)), implementation=Implementation.TPU)
    with pytest.raises(TypeError, match="implementation is None or one of"):
        normalize(jnp.ones((2, 3)), implementation="cpu")  # type: ignore[call-overload]

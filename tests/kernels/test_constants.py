"""Weights that are constants of a program: laid out once, and never mistaken."""

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.formats.packing import pack_bits, unpack_bits
from jcompress.kernels import Implementation, Nonlinearity, _native
from jcompress.kernels._constants import constant_numbers
from jcompress.kernels.int8_matmul import int8_matmul
from jcompress.kernels.quantized_conv import quantized_conv
from jcompress.kernels.quantized_conv.cpu import DIRECT
from jcompress.kernels.shared_input_matmul import Part, shared_input_matmul
from jcompress.kernels.weight_only_matmul import weight_only_matmul

pytestmark = pytest.mark.once

FAST = _native.instructions() not in (None, "generic")
"""Whether the compiled kernels are chosen."""

# Images, side, channels, outputs and groups: many and few positions, one image and
# several, each channel by itself, blocks that are not full.
SIZES = {
    "one": (1, 9, 16, 70, 1),
    "several": (9, 6, 5, 130, 1),
    "few": (1, 2, 24, 40, 1),
    "channels": (2, 8, 70, 70, 70),
    "groups": (1, 8, 16, 32, 4),
}


def made(name: str, seed: int) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Images of int8; and a weight, its scales and bias."""
    images, side, channels, outputs, groups = SIZES[name]
    rng = np.random.default_rng(seed)
    x = rng.integers(-127, 128, (images, side, side, channels)).astype(np.int8)
    inputs = 9 * channels // groups
    weight = (
        rng.integers(-127, 128, (outputs, inputs)).astype(np.int8),
        rng.uniform(0.5, 1.5, (outputs, 1)).astype(np.float32) / 5000,
        rng.normal(size=outputs).astype(np.float32),
    )
    return jnp.asarray(x), tuple(map(jnp.asarray, weight))


def convolve(
    name: str, weight: tuple[jax.Array, ...], x: jax.Array, **given: Any
) -> jax.Array:
    """The images convolved, stored as integers unless `y_bits` is None."""
    values, scales, bias = weight
    options = {
        "y_bits": 8,
        "y_scale": jnp.float32(0.05),
        "activation": Nonlinearity.RELU,
        **given,
    }
    if options["y_bits"] is None:
        del options["y_scale"]
    return quantized_conv(
        x,
        values,
        scales,
        bits=8,
        kernel=(3, 3),
        padding=((1, 1), (1, 1)),
        groups=SIZES[name][4],
        x_bits=8,
        x_scale=jnp.float32(0.02),
        x_zero=jnp.float32(3),
        bias=bias,
        **options,
    )


def with_constants(
    name: str, weight: tuple[jax.Array, ...], **given: Any
) -> Callable[[jax.Array], jax.Array]:
    """A program of which the weight is a constant."""
    return jax.jit(functools.partial(convolve, name, weight, **given))


@pytest.mark.parametrize("y_bits", [8, None])
@pytest.mark.parametrize("name", SIZES)
def test_constants_give_what_arguments_give(name: str, y_bits: int | None) -> None:
    by_arguments = jax.jit(functools.partial(convolve, name, y_bits=y_bits))
    for seed in range(2):
        x, weight = made(name, seed)
        run = with_constants(name, weight, y_bits=y_bits)
        kept = "fixed = true" in run.lower(x).as_text()
        assert kept == (_native.instructions() in DIRECT)
        reference = convolve(
            name, weight, x, y_bits=y_bits, implementation=Implementation.REFERENCE
        )
        for images in (x, jnp.flip(x, 1), x):
            np.testing.assert_array_equal(run(images), by_arguments(weight, images))
        np.testing.assert_allclose(
            np.asarray(run(x), np.float64),
            np.asarray(reference, np.float64),
            rtol=1e-5,
            atol=1 if y_bits else 1e-5,
        )


def products(
    kind: str, weights: tuple[jax.Array, ...], x: jax.Array
) -> tuple[jax.Array, ...]:
    """Rows times weights by one of the operations."""
    scales = [jnp.full((w.shape[0], 1), 0.01, jnp.float32) for w in weights]
    pairs = list(zip(weights, scales, strict=True))
    match kind:
        case "int8":
            return tuple(int8_matmul(x, w, scale) for w, scale in pairs)
        case "zeros":
            given = {"x_scale": jnp.float32(0.03), "x_zero": jnp.float32(7)}
            return tuple(
                int8_matmul(x, w, scale, jnp.full_like(scale, 3, jnp.int8), **given)
                for w, scale in pairs
            )
        case "weights":
            return tuple(weight_only_matmul(x, w, s, bits=8) for w, s in pairs)
        case _:
            bias = jnp.arange(weights[0].shape[0], dtype=jnp.float32)
            parts = [Part(w, scale, bias=bias) for w, scale in pairs]
            return shared_input_matmul(x, parts, x_bits=8)


@pytest.mark.parametrize("rows", [1, 3, 4, 6, 13, 60, 530])
@pytest.mark.parametrize("kind", ["int8", "zeros", "weights", "shared"])
def test_products_with_constants(kind: str, rows: int) -> None:
    by_arguments = jax.jit(functools.partial(products, kind))
    rng = np.random.default_rng(rows)
    x = jnp.asarray(rng.normal(size=(rows, 200)).astype(np.float32))
    for _ in range(2):
        weights = tuple(
            jnp.asarray(rng.integers(-127, 128, (150, 200)).astype(np.int8))
            for _ in range(3)
        )
        run = jax.jit(functools.partial(products, kind, weights))
        kept = run.lower(x).as_text().count("fixed = true")
        assert kept == ((1 if kind == "shared" else 3) if FAST else 0)
        for data in (x, x[::-1], x):
            wanted = by_arguments(weights, data)
            for got, one in zip(run(data), wanted, strict=True):
                np.testing.assert_allclose(got, one, rtol=2e-6, atol=2e-4)


def grouped(
    weight: tuple[jax.Array, ...], x: jax.Array, *, bits: int, x_bits: int | None
) -> jax.Array:
    """Rows times a weight that has scales by groups, and perhaps zeros."""
    values, scales, *zeros = weight
    return weight_only_matmul(x, values, scales, *zeros, bits=bits, x_bits=x_bits)


def grouped_weight(
    rng: np.random.Generator, *, bits: int, groups: int, zeros: bool
) -> tuple[jax.Array, ...]:
    """A weight [150, 240], its scales, and perhaps zeros."""
    half = 2 ** (bits - 1)
    values = rng.integers(-half, half, (150, 240)).astype(np.int8)
    scales = rng.uniform(0.5, 1.5, (150, groups)).astype(np.float32) / 1000
    points = rng.integers(-half, half, (150, groups)).astype(np.int8)
    weight = (pack_bits(jnp.asarray(values), bits), jnp.asarray(scales))
    return (*weight, jnp.asarray(points)) if zeros else weight


@pytest.mark.parametrize("rows", [1, 4, 7, 13, 60])
@pytest.mark.parametrize("x_bits", [8, None])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("groups", [1, 5, 6, 12])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_grouped_products_with_constants(
    bits: int, groups: int, zeros: bool, x_bits: int | None, rows: int
) -> None:
    rng = np.random.default_rng(rows)
    x = jnp.asarray(rng.normal(size=(rows, 240)).astype(np.float32))
    given = functools.partial(grouped, bits=bits, x_bits=x_bits)
    by_arguments = jax.jit(given)
    first = grouped_weight(rng, bits=bits, groups=groups, zeros=zeros)
    # Of the same integers, with other scales.
    second = (first[0], *(jnp.flip(array, 0) for array in first[1:]))
    for weight in (first, second):
        run = jax.jit(functools.partial(given, weight))
        kept = "fixed = true" in run.lower(x).as_text()
        taken = FAST and _native.takes_groups(bits, 240, groups)
        assert kept == (taken and bits in (4, 8))
        values, scales, *points = weight
        integers = np.asarray(unpack_bits(values, 240, bits), np.float64)
        if points:
            integers -= np.repeat(np.asarray(points[0]), 240 // groups, axis=1)
        dense = integers * np.repeat(np.asarray(scales), 240 // groups, axis=1)
        for data in (x, x[::-1], x):
            got = run(data)
            wanted = by_arguments(weight, data)
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
            error = np.linalg.norm(got - np.asarray(data, np.float64) @ dense.T)
            limit = 1e-6 if x_bits is None else 0.02
            assert error <= limit * np.linalg.norm(wanted)


def test_products_with_other_scales_in_the_place_of_constants() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(40, 240)).astype(np.float32))
    first = grouped_weight(rng, bits=4, groups=6, zeros=False)
    second = (first[0], first[1] * 2)
    given = functools.partial(grouped, bits=4, x_bits=8)
    traced = jax.make_jaxpr(functools.partial(given, first))(x)
    (place,) = (i for i, one in enumerate(traced.consts) if one is first[1])
    run = jax.jit(functools.partial(jax.core.eval_jaxpr, traced.jaxpr))
    for weight in (first, second, first):
        constants = list(traced.consts)
        constants[place] = weight[1]
        (got,) = run(constants, x)
        wanted = jax.jit(given)(weight, x)
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def test_products_with_another_weight_in_the_place_of_a_constant() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(40, 64)).astype(np.float32))
    first, second = (
        jnp.asarray(rng.integers(-127, 128, (48, 64)).astype(np.int8)) for _ in range(2)
    )
    traced = jax.make_jaxpr(functools.partial(products, "int8", (first,)))(x)
    (place,) = (i for i, one in enumerate(traced.consts) if one is first)
    run = jax.jit(functools.partial(jax.core.eval_jaxpr, traced.jaxpr))
    for weight in (first, second, first):
        constants = list(traced.consts)
        constants[place] = weight
        (got,) = run(constants, x)
        (wanted,) = jax.jit(functools.partial(products, "int8"))((weight,), x)
        np.testing.assert_array_equal(got, wanted)


def test_constants_of_which_each_device_has_a_part() -> None:
    rng = np.random.default_rng(0)
    mesh = jax.make_mesh((4,), ("outputs",), (jax.sharding.AxisType.Auto,))
    by_output = jax.NamedSharding(mesh, jax.P(None, "outputs"))
    x = jnp.asarray(rng.normal(size=(8, 512)).astype(np.float32))
    weight = jnp.asarray(rng.integers(-127, 128, (1024, 512)).astype(np.int8))
    (wanted,) = jax.jit(functools.partial(products, "int8"))((weight,), x)

    @jax.jit
    def model(x: jax.Array) -> jax.Array:
        for _ in range(3):
            (y,) = products("int8", (weight,), x)
            y = jax.lax.with_sharding_constraint(y, by_output)
            x = x + 0 * y[:, :512]
        return y

    with jax.set_mesh(mesh):
        placed = jax.device_put(x, jax.NamedSharding(mesh, jax.P()))
        program = model.lower(placed).compile().as_text()
        assert ("jcompress_matmul" in program) == FAST
        assert "fixed = true" not in program
        for _ in range(5):
            np.testing.assert_allclose(model(placed), wanted, rtol=1e-6, atol=1e-4)


def test_several_weights_of_one_shape_in_one_program() -> None:
    x, first = made("one", 0)
    _, second = made("one", 1)

    def model(*weights: Any) -> Any:
        return [convolve("one", weight, x) for weight in (*weights, *weights)]

    wanted = jax.jit(model)(first, second)
    got = jax.jit(functools.partial(model, first, second))()
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(got[0], got[1])


def test_what_follows_may_change() -> None:
    """The weight is kept; a bias that is an argument is read in each call."""
    x, (values, scales, bias) = made("one", 0)
    run = jax.jit(lambda bias: convolve("one", (values, scales, bias), x))
    outs = [run(bias), run(bias + 1), run(bias)]
    wanted = jax.jit(functools.partial(convolve, "one"))((values, scales, bias + 1), x)
    np.testing.assert_array_equal(outs[1], wanted)
    np.testing.assert_array_equal(outs[0], outs[2])
    assert not np.array_equal(outs[0], outs[1])


def test_another_weight_in_the_place_of_a_constant() -> None:
    """Whoever evaluates a traced program with other constants gets their result."""
    x, first = made("one", 0)
    _, second = made("one", 1)
    traced = jax.make_jaxpr(functools.partial(convolve, "one", first))(x)
    run = jax.jit(functools.partial(jax.core.eval_jaxpr, traced.jaxpr))

    def constants(weight: tuple[jax.Array, ...]) -> list[Any]:
        places = {id(own): other for own, other in zip(first, weight, strict=True)}
        found = [places.get(id(constant), constant) for constant in traced.consts]
        assert sum(id(constant) in places for constant in traced.consts) == len(first)
        return found

    by_arguments = jax.jit(functools.partial(convolve, "one"))
    for weight in (first, second, first, second):
        (out,) = run(constants(weight), x)
        np.testing.assert_array_equal(out, by_arguments(weight, x))


def test_threads_that_call_first_at_once() -> None:
    for name in ("one", "channels"):
        x, weight = made(name, 0)
        wanted = jax.jit(functools.partial(convolve, name))(weight, x)
        run = with_constants(name, weight).lower(x).compile()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            outs = list(pool.map(run, [x] * 64))
        for out in outs:
            np.testing.assert_array_equal(out, wanted)


def test_layers_of_a_scan_are_no_constants() -> None:
    x, _ = made("one", 0)
    layers = [made("one", seed)[1] for seed in range(3)]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *layers)

    @jax.jit
    def model(x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, weight: Any) -> Any:
            return x, convolve("one", weight, x)

        return jax.lax.scan(layer, x, stacked)[1]

    for out, weight in zip(model(x), layers, strict=True):
        np.testing.assert_array_equal(out, with_constants("one", weight)(x))


def test_numbers_of_constants() -> None:
    seen: dict[str, Any] = {}
    one, other = jnp.ones(3), jnp.ones(3)

    def program(x: jax.Array) -> jax.Array:
        for name, array in {"one": one, "again": one, "other": other, "x": x}.items():
            seen[name] = constant_numbers(array)
        seen["numpy"] = constant_numbers(np.ones(3))
        return x

    jax.make_jaxpr(program)(one)
    assert seen["one"] == seen["again"] is not None
    assert seen["other"] not in (seen["one"], None)
    assert seen["x"] is seen["numpy"] is None
    # Parts of what is not traced are compiled for any array.
    assert constant_numbers(one) is None
    jax.grad(lambda x: [seen.update(eager=constant_numbers(one)), x.sum()][1])(one)
    assert seen["eager"] is None

"""On a mesh each device multiplies what it has; weights are never gathered."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import normal, stored, weight
from jax import P
from jax.sharding import AxisType, NamedSharding

from jcompress.formats import Float8, Int
from jcompress.kernels import (
    Elementwise,
    Implementation,
    Nonlinearity,
    float8_matmul,
    int8_matmul,
    weight_only_matmul,
)
from jcompress.kernels.block_sparse_matmul import block_sparse_matmul
from jcompress.quantization import PerChannel, PerGroup, Weights

ROWS, INPUTS, OUTPUTS = 8, 96, 16
Arrays = tuple[Any, ...]

CUTS = {
    "rows": (P("a"), P(), P()),
    "outputs": (P(), P("a"), P("a")),
    "rows and outputs": (P("b"), P("a"), P("a")),
    "outputs of values only": (P(), P("a"), P()),
    "inputs": (P(None, "a"), P(None, "a"), P(None, "a")),
    "inputs of the weight only": (P(), P(None, "a"), P(None, "a")),
    "inputs and outputs": (P(None, "b"), P("a", "b"), P("a", "b")),
}
"""How x [M, K], values [N, K] and scales [N, G] are cut."""


def mesh(kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind, kind))


def collectives(text: str) -> set[str]:
    names = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"
    return set(re.findall(rf" ({names})(?:-start)?\(", text))


def product(bits: int, groups: int, x_bits: int | None) -> tuple[Any, Arrays]:
    """A product of x, values, scales and zeros, and such arrays."""
    kind = PerChannel() if groups == 1 else PerGroup(INPUTS // groups)
    spec = Weights(format=Int(bits, symmetric=False), granularity=kind)
    values, scales, zeros = weight(OUTPUTS, INPUTS, spec)
    run = functools.partial(weight_only_matmul, bits=bits, x_bits=x_bits)
    return run, (normal((ROWS, INPUTS)), stored(values, bits), scales, zeros)


def integer_product() -> tuple[Any, Arrays]:
    """As `product`, with a bias that is not cut."""
    _, (x, values, scales, zeros) = product(8, 1, None)
    return functools.partial(int8_matmul, bias=normal((OUTPUTS,), seed=4)), (
        x,
        values,
        scales,
        zeros,
    )


def float8_product() -> tuple[Any, Arrays]:
    """A product of x, values, scales and bias, which are cut alike."""
    values, scales, _ = weight(OUTPUTS, INPUTS, Weights(format=Float8()))

    def run(x: Any, values: Any, scales: Any, bias: Any, **given: Any) -> jax.Array:
        return float8_matmul(x, values, scales, bias=bias, **given)

    x, bias = normal((ROWS, INPUTS)), normal((OUTPUTS,), seed=4)
    return run, (x, values, scales, bias)


PRODUCTS: dict[str, Callable[[], tuple[Any, Arrays]]] = {
    "int8": integer_product,
    "float8": float8_product,
    "w8": functools.partial(product, 8, 1, None),
    "w3": functools.partial(product, 3, 1, None),
    "w4 in groups": functools.partial(product, 4, 4, None),
    "w4a8 in groups": functools.partial(product, 4, 4, 8),
}


def placed(arrays: Arrays, cuts: Any, on: jax.sharding.Mesh) -> Arrays:
    x, values, scales = cuts
    if arrays[2].shape[-1] == 1:
        scales = P(*scales[:1])
    put = zip(arrays, (x, values, scales, scales), strict=True)
    return tuple(jax.device_put(a, NamedSharding(on, cut)) for a, cut in put)


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        *(("int8", cut) for cut in CUTS),
        ("float8", "rows and outputs"),
        ("float8", "inputs"),
        ("w8", "inputs"),
        ("w3", "inputs"),
        ("w4 in groups", "rows and outputs"),
        ("w4 in groups", "inputs and outputs"),
        ("w4a8 in groups", "outputs"),
        ("w4a8 in groups", "inputs"),
    ],
)
def test_no_weight_is_gathered(name: str, cut: str) -> None:
    run, arrays = PRODUCTS[name]()
    expected = run(*arrays, implementation=Implementation.REFERENCE)
    given = placed(arrays, CUTS[cut], mesh())
    compiled = jax.jit(run).lower(*given).compile()
    out = compiled(*given)
    top = float(jnp.abs(expected).max())
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5 * top)
    found = collectives(compiled.as_text())
    assert found == ({"all-reduce"} if "inputs" in cut else set())
    if "inputs" not in cut:
        x, values, _ = CUTS[cut]
        spec = P(x[0] if x else None, values[0] if values else None)
        assert out.sharding.is_equivalent_to(NamedSharding(mesh(), spec), 2)


@pytest.mark.parametrize("name", ["int8", "w4 in groups", "w4a8 in groups"])
def test_what_follows_comes_after_the_sum_over_devices(name: str) -> None:
    run, arrays = PRODUCTS[name]()
    run = functools.partial(run, then=Elementwise(activation=Nonlinearity.GELU))
    more = [normal((ROWS, OUTPUTS), seed=seed) for seed in (5, 6)]

    def whole(*arrays: jax.Array) -> jax.Array:
        *own, factor, residual = arrays
        product: jax.Array = run(*own, factor=factor, residual=residual)
        return product

    def loss(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(whole(*arrays) ** 2)

    gradient = jax.jit(jax.grad(loss, (0, len(arrays), len(arrays) + 1)))
    expected, slopes = whole(*arrays, *more), gradient(*arrays, *more)
    for cut in ("rows and outputs", "inputs", "inputs and outputs"):
        given = placed(arrays, CUTS[cut], mesh())
        compiled = jax.jit(whole).lower(*given, *more).compile()
        out = compiled(*given, *more)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
        assert "all-gather" not in collectives(compiled.as_text())
        for got, want in zip(gradient(*given, *more), slopes, strict=True):
            top = float(jnp.abs(want).max())
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * top)


def test_copies_stay_where_they_are() -> None:
    """Stacked weights, cut along the stack and along the outputs, mapped or looped."""
    run, one = product(4, 1, None)
    arrays = tuple(jnp.stack([a, a]) for a in one)
    expected = run(*one)
    cuts = (P("a"), P("a", "b"), P("a", "b"), P("a", "b"))
    given = [
        jax.device_put(a, NamedSharding(mesh(), cut))
        for a, cut in zip(arrays, cuts, strict=True)
    ]
    compiled = jax.jit(jax.vmap(run)).lower(*given).compile()
    assert not collectives(compiled.as_text())
    for out in compiled(*given):
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)

    cuts = (P(None, "a"), P(None, "b"), P(None, "b"), P(None, "b"))
    given = [
        jax.device_put(a, NamedSharding(mesh(), cut))
        for a, cut in zip(arrays, cuts, strict=True)
    ]

    def loop(*arrays: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda _, each: (None, run(*each)), None, arrays)[1]

    compiled = jax.jit(loop).lower(*given).compile()
    assert "all-gather" not in collectives(compiled.as_text())
    np.testing.assert_allclose(compiled(*given)[1], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["int8", "float8", "w4 in groups"])
def test_gradient(name: str) -> None:
    run, arrays = PRODUCTS[name]()
    gradient = jax.jit(jax.grad(lambda *a: jnp.sum(run(*a) ** 2)))
    expected = gradient(*arrays)
    top = float(jnp.abs(expected).max())
    for cut, allowed in (("outputs", {"all-reduce"}), ("rows", set())):
        given = placed(arrays, CUTS[cut], mesh())
        compiled = gradient.lower(*given).compile()
        assert collectives(compiled.as_text()) <= allowed
        np.testing.assert_allclose(
            compiled(*given), expected, rtol=1e-5, atol=1e-5 * top
        )


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("cut", ["rows", "outputs", "inputs"])
def test_in_a_shard_map(cut: str, check_vma: bool) -> None:
    run, arrays = product(4, 4, None)
    x, values, scales = CUTS[cut]

    def local(*parts: jax.Array) -> jax.Array:
        part = run(*parts)
        return jax.lax.psum(part, "a") if cut == "inputs" else part

    whole = {"rows": P("a"), "outputs": P(None, "a"), "inputs": P()}[cut]
    mapped = jax.jit(
        jax.shard_map(
            local,
            mesh=mesh(),
            in_specs=(x, values, scales, scales),
            out_specs=whole,
            check_vma=check_vma,
        )
    )
    expected = run(*arrays)
    np.testing.assert_allclose(mapped(*arrays), expected, rtol=1e-5, atol=1e-4)
    found = collectives(mapped.lower(*arrays).compile().as_text())
    assert found == ({"all-reduce"} if cut == "inputs" else set())

    def loss(f: Any) -> Any:
        return jax.jit(jax.grad(lambda x: jnp.sum(f(x, *arrays[1:]))))(arrays[0])

    np.testing.assert_allclose(loss(mapped), loss(run), rtol=1e-5, atol=1e-5)


def test_in_a_shard_map_over_a_part_of_the_mesh() -> None:
    run, arrays = product(8, 1, None)
    mapped = jax.jit(
        jax.shard_map(
            run,
            mesh=mesh(),
            in_specs=(P("a"), P(), P(), P()),
            out_specs=P("a"),
            axis_names={"a"},
        )
    )
    given = placed(arrays, (P("a"), P("b"), P("b")), mesh())
    compiled = mapped.lower(*given).compile()
    assert not collectives(compiled.as_text())
    np.testing.assert_allclose(compiled(*given), run(*arrays), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("cut", ["rows and outputs", "inputs"])
def test_where_shardings_are_part_of_types(cut: str) -> None:
    run, arrays = PRODUCTS["int8"]()
    expected = np.asarray(run(*arrays))
    with jax.set_mesh(mesh(AxisType.Explicit)):
        given = placed(arrays, CUTS[cut], mesh(AxisType.Explicit))
        compiled = jax.jit(run).lower(*given).compile()
        found = collectives(compiled.as_text())
        assert found == ({"all-reduce"} if cut == "inputs" else set())
        out = jax.jit(run)(*given)
        spec = P("b", "a") if cut == "rows and outputs" else P(None, None)
        assert jax.typeof(out).sharding.spec == spec
        np.testing.assert_allclose(np.asarray(out), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_that_nothing_is_placed_on(kind: AxisType) -> None:
    run, arrays = PRODUCTS["int8"]()
    expected = np.asarray(run(*arrays))
    with jax.set_mesh(mesh(kind)):
        np.testing.assert_allclose(jax.jit(run)(*arrays), expected, rtol=1e-6)


def test_a_cut_through_a_byte_is_undone() -> None:
    """7 inputs in 4 bytes, or 3 groups of scales for two devices."""
    run = jax.jit(functools.partial(weight_only_matmul, bits=4))
    for inputs, groups in ((7, 1), (12, 3)):
        spec = Weights(format=Int(4), granularity=PerGroup(inputs // groups))
        values, scales, _ = weight(4, inputs, spec)
        x, packed = normal((2, inputs)), stored(values, 4)
        whole = NamedSharding(mesh(), P())
        cut = jax.device_put(packed, NamedSharding(mesh(), P(None, "a")))
        given = (jax.device_put(x, whole), cut, jax.device_put(scales, whole))
        expected = run(x, packed, scales)
        np.testing.assert_allclose(run(*given), expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_cut_is_whole_on_each_device() -> None:
    """Block-sparse weights have no axis of outputs; rows are cut all the same."""
    rng = np.random.default_rng(0)
    blocks = jnp.asarray(rng.normal(size=(6, 4, 8)), jnp.float32)
    columns = jnp.asarray([0, 3, 1, 2, 0, 1], jnp.int32)
    starts = jnp.asarray([0, 2, 3, 4, 6], jnp.int32)
    x = normal((ROWS, 32))
    run = block_sparse_matmul
    expected = run(x, blocks, columns, starts)
    for x_cut, out_cut in ((P("a"), P("a")), (P(), P(None, "a"))):
        given = [
            jax.device_put(a, NamedSharding(mesh(), cut))
            for a, cut in zip(
                (x, blocks, columns, starts), (x_cut, P(), P(), P()), strict=True
            )
        ]
        to = NamedSharding(mesh(), out_cut)
        compiled = jax.jit(run, out_shardings=to).lower(*given).compile()
        assert not collectives(compiled.as_text())
        np.testing.assert_allclose(compiled(*given), expected, rtol=1e-5, atol=1e-5)


def test_blocks_of_each_device_with_its_rows() -> None:
    """Inside a `shard_map`, x cut along one axis of the mesh and blocks the other."""
    rng = np.random.default_rng(0)
    blocks = jnp.asarray(rng.normal(size=(4, 4, 4)), jnp.float32)
    columns = jnp.asarray([0, 2, 1, 3], jnp.int32)
    starts = jnp.asarray([0, 1, 2], jnp.int32)
    x = normal((ROWS, 16))
    for name in (Implementation.XLA, Implementation.REFERENCE):
        run = functools.partial(block_sparse_matmul, implementation=name)
        halves = [run(x, blocks[i : i + 2], columns[i : i + 2], starts) for i in (0, 2)]
        cut = jax.shard_map(
            run,
            mesh=mesh(),
            in_specs=(P("b"), P("a"), P("a"), P("a")),
            out_specs=P("b", "a"),
        )
        out = jax.jit(cut)(x, blocks, columns, jnp.tile(starts, 2))
        expected = jnp.concatenate(halves, axis=1)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)

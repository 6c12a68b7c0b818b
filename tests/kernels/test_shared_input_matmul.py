"""`shared_input_matmul` is `weight_only_matmul` with each weight, bit for bit."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import normal, stored, weight
from jax import P, export
from jax.sharding import AxisType, NamedSharding

from jcompress.formats import Float8, Int
from jcompress.kernels import (
    Elementwise,
    Implementation,
    Nonlinearity,
    Part,
    _native,
    export_checks,
    shared_input_matmul,
    weight_only_matmul,
)
from jcompress.quantization import PerChannel, PerGroup, Weights

SILU = Elementwise(activation=Nonlinearity.SILU)
NAMES = [None, Implementation.XLA, Implementation.REFERENCE]
if not _native.missing():
    NAMES.append(Implementation.CPU)


def parts_of(
    bits: int, groups: int, *, inputs: int = 64, symmetric: bool = True
) -> list[Part]:
    """Three weights of different sizes; one with a bias, another with all."""
    kind = PerChannel() if groups == 1 else PerGroup(inputs // groups)
    spec = Weights(format=Int(bits, symmetric=symmetric), granularity=kind)
    parts = []
    for seed, outputs in enumerate((40, 8, 16)):
        values, scales, zeros = weight(outputs, inputs, spec, seed=seed)
        parts.append(Part(stored(values, bits), scales, zeros, bits))
    parts[1] = parts[1]._replace(bias=normal((8,), seed=8))
    parts[2] = parts[2]._replace(bias=normal((16,), seed=9), then=SILU)
    return parts


def separate(x: jax.Array, parts: list[Part], **given: Any) -> tuple[jax.Array, ...]:
    return tuple(
        weight_only_matmul(
            x, one.values, one.scales, one.zeros, bits=one.bits, bias=one.bias,
            then=one.then, **given,
        )
        for one in parts
    )  # fmt: skip


def both(x: jax.Array, parts: list[Part], **given: Any) -> tuple[Any, Any]:
    """The results of one call, and those of a call for each."""

    def run(how: Any) -> Any:
        return jax.jit(lambda x: how(x, parts, **given))(x)

    return run(shared_input_matmul), run(separate)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("rows", "bits", "groups", "x_bits"),
    [((1,), 8, 1, 8), ((2, 35), 8, 1, 8), ((3,), 4, 2, None), ((70,), 4, 2, 8)],
)
def test_the_same_as_separate_products(
    rows: tuple[int, ...], bits: int, groups: int, x_bits: int | None, name: Any
) -> None:
    for dtype in (jnp.float32, jnp.bfloat16):
        x = normal((*rows, 64), dtype)
        parts = parts_of(bits, groups, symmetric=bits == 8)
        outs, expected = both(x, parts, x_bits=x_bits, implementation=name)
        for out, want in zip(outs, expected, strict=True):
            assert out.dtype == dtype
            np.testing.assert_array_equal(out, want)


def test_weights_that_are_laid_out_otherwise() -> None:
    parts = parts_of(8, 1)
    floating = weight(5, 64, Weights(format=Float8()))
    for other in (parts_of(4, 1)[0], parts_of(8, 2)[0], Part(*floating)):
        for outs, expected in (
            both(normal((5, 64)), [*parts, other]),
            both(normal((0, 64)), [*parts, other]),
        ):
            for out, want in zip(outs, expected, strict=True):
                np.testing.assert_array_equal(out, want)


def test_gradient_and_vmap() -> None:
    x, parts = normal((3, 5, 64)), parts_of(4, 1, symmetric=False)

    def loss(how: Any, x: jax.Array) -> jax.Array:
        products = jax.vmap(lambda x: how(x, parts, x_bits=8))(x)
        total: jax.Array = sum(jnp.sum(y**2) for y in products)  # type: ignore[assignment]
        return total

    got = jax.jit(jax.grad(functools.partial(loss, shared_input_matmul)))(x)
    want = jax.jit(jax.grad(functools.partial(loss, separate)))(x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_vmap_over_stacked_weights() -> None:
    x = normal((2, 5, 64))
    many = [parts_of(8, 1), parts_of(8, 1)]
    many[1] = [one._replace(scales=one.scales * np.float32(2)) for one in many[1]]
    bits_of = [(one.bits, one.then) for one in many[0]]
    arrays = [[one._replace(bits=0, then=None) for one in parts] for parts in many]
    stack = jax.tree.map(lambda *each: jnp.stack(each), *[
        [(one.values, one.scales, one.bias) for one in parts] for parts in arrays
    ])  # fmt: skip

    def run(x: jax.Array, stack: Any) -> tuple[jax.Array, ...]:
        parts = [
            Part(values, scales, None, bits, bias, then)
            for (values, scales, bias), (bits, then) in zip(stack, bits_of, strict=True)
        ]
        return shared_input_matmul(x, parts, x_bits=8)

    outs = jax.jit(jax.vmap(run))(x, stack)
    for i, parts in enumerate(many):
        _, expected = both(x[i], parts, x_bits=8)
        for out, want in zip(outs, expected, strict=True):
            np.testing.assert_allclose(out[i], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("x_bits", [8, None])
@pytest.mark.parametrize("cut", ["rows and outputs", "inputs"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(kind: AxisType, cut: str, x_bits: int | None) -> None:
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind, kind))
    x_cut, cuts = P("b"), (P("a"), P("a"), None, None, P("a"), None)
    if cut == "inputs":
        x_cut, cuts = P(None, "a"), (P(None, "a"), P(None, "a"), None, None, P(), None)
    x, parts = normal((8, 64)), parts_of(8, 2)
    _, expected = both(x, parts, x_bits=x_bits)

    def put(a: Any, spec: Any) -> Any:
        return (
            a
            if spec is None or a is None
            else jax.device_put(a, NamedSharding(mesh, spec))
        )

    placed = [Part(*map(put, part, cuts)) for part in parts]
    given = [(one.values, one.scales, one.bias) for one in placed]

    def run(x: jax.Array, given: Any) -> tuple[jax.Array, ...]:
        whole = [
            one._replace(values=values, scales=scales, bias=bias)
            for one, (values, scales, bias) in zip(parts, given, strict=True)
        ]
        return shared_input_matmul(x, whole, x_bits=x_bits)

    with jax.set_mesh(mesh):
        compiled = jax.jit(run).lower(put(x, x_cut), given).compile()
        outs = compiled(put(x, x_cut), given)
    text = compiled.as_text()
    assert "all-gather" not in text
    assert ("all-reduce" in text) == (cut == "inputs")
    for out, want in zip(outs, expected, strict=True):
        np.testing.assert_allclose(np.asarray(out), want, rtol=1e-5, atol=1e-4)


def test_exported_for_any_number_of_rows() -> None:
    pytest.importorskip("flatbuffers", reason="jax.export writes with flatbuffers")
    parts = parts_of(8, 1)
    (rows,) = export.symbolic_shape("rows")
    run = jax.jit(lambda x: shared_input_matmul(x, parts, x_bits=8))
    written = export.export(run, disabled_checks=export_checks())(
        jax.ShapeDtypeStruct((rows, 64), jnp.float32)
    ).serialize()
    loaded = export.deserialize(written)
    for count in (1, 30):
        x = normal((count, 64))
        for out, want in zip(loaded.call(x), run(x), strict=True):
            np.testing.assert_array_equal(out, want)


def test_errors() -> None:
    x, parts = normal((2, 64)), parts_of(8, 1)
    with pytest.raises(ValueError, match="there are no weights"):
        shared_input_matmul(x, [])
    with pytest.raises(ValueError, match=r"shared_input_matmul: for 32 inputs"):
        shared_input_matmul(x[:, :32], parts)
    with pytest.raises(ValueError, match=r"bias is float32 \[40\]"):
        shared_input_matmul(x, [parts[0]._replace(bias=jnp.ones(3)), *parts[1:]])

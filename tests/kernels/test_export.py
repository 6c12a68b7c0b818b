"""Products go through `jax.export`: written, read and called again."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import normal, stored, weight
from jax import export

from jcompress.formats import Float8, Int
from jcompress.kernels import (
    Elementwise,
    Nonlinearity,
    export_checks,
    float8_matmul,
    int8_matmul,
    weight_only_matmul,
)
from jcompress.quantization import PerGroup, Weights


def gated(x: jax.Array, values: jax.Array, scales: jax.Array) -> jax.Array:
    silu = Elementwise(activation=Nonlinearity.SILU)
    gate = int8_matmul(x, values, scales)
    return int8_matmul(x, values, scales, then=silu, factor=gate, residual=gate)


def cases() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    grouped = Weights(format=Int(3, symmetric=False), granularity=PerGroup(8))
    values, scales, zeros = weight(6, 24, grouped)
    eight = weight(6, 24, Weights())[:2]
    floating = weight(6, 24, Weights(format=Float8()))[:2]
    x = normal((4, 24))
    return {
        "float8": (float8_matmul, (x, *floating)),
        "int8": (int8_matmul, (x, *eight)),
        "w3": (
            functools.partial(weight_only_matmul, bits=3),
            (x, stored(values, 3), scales, zeros),
        ),
        "w8a8": (
            functools.partial(weight_only_matmul, bits=8, x_bits=8),
            (x.astype(jnp.bfloat16), *eight),
        ),
        "w8a8, gated": (gated, (x, *eight)),
    }


@pytest.mark.parametrize("name", cases())
def test_written_and_read(name: str) -> None:
    pytest.importorskip("flatbuffers", reason="jax.export writes with flatbuffers")
    run, args = cases()[name]
    jitted = jax.jit(run)
    written = export.export(jitted, disabled_checks=export_checks())(*args).serialize()
    out = jax.jit(export.deserialize(written).call)(*args)
    np.testing.assert_array_equal(out, jitted(*args))


@pytest.mark.parametrize("name", ["float8", "int8", "w8a8", "w8a8, gated"])
def test_for_any_number_of_rows_and_several_platforms(name: str) -> None:
    run, (x, *weight) = cases()[name]
    (rows,) = export.symbolic_shape("rows")
    any_rows = jax.ShapeDtypeStruct((rows, x.shape[1]), x.dtype)
    jitted = jax.jit(run)
    exported = export.export(
        jitted, platforms=("cpu", "tpu", "cuda"), disabled_checks=export_checks()
    )(any_rows, *weight)
    for count in (1, 3):
        part = x[:count]
        np.testing.assert_allclose(
            np.asarray(exported.call(part, *weight), np.float32),
            np.asarray(jitted(part, *weight), np.float32),
            rtol=1e-6,
        )

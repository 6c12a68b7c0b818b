"""The handlers of the compiled kernels, on sizes that nobody has thought of.

`.ci/sanitize` runs this file on a library built with sanitizers, which the variable
JCOMPRESS_LIBRARY names, with every instruction set of the processor.
"""

import concurrent.futures
import functools
import os
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from jcompress.formats.packing import pack_bits
from jcompress.kernels import Implementation, _native
from jcompress.kernels.max_pool import max_pool
from jcompress.kernels.quantized_conv import quantized_conv
from jcompress.kernels.quantized_conv.cpu import DIRECT

SANITIZED = os.environ.get("JCOMPRESS_LIBRARY")
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(bool(_native.missing()), reason=_native.missing()),
]

EXAMPLES = 25 if SANITIZED else 20
many = settings(
    max_examples=EXAMPLES,
    suppress_health_check=list(HealthCheck),
)


class Product(NamedTuple):
    """Arguments of `_native.matmul` but for the arrays, which have the seed `seed`."""

    stacks: int
    rows: int
    inputs: int
    outputs: int
    groups: int
    bits: int
    x_bits: int
    digits: int
    dtype: str
    x_scale: bool
    x_zero: bool
    zeros: bool
    bias: bool
    seed: int


@st.composite
def products(draw: Any) -> Product:
    dtype = draw(st.sampled_from(["float32", "bfloat16", "float16", "int8"]))
    groups = draw(st.sampled_from([1, 1, 2, 3, 7]))
    size = draw(st.sampled_from([16, 32, 64, 128]) | st.integers(1, 200))
    digits = 1 if dtype == "int8" else draw(st.integers(1, 3))
    x_scale = dtype == "int8" or (digits == 1 and draw(st.booleans()))
    return Product(
        stacks=draw(st.sampled_from([1, 1, 1, 3])),
        rows=draw(st.sampled_from([0, 1, 2, 5, 7, 8, 13, 16, 45])),
        inputs=size * groups,
        outputs=draw(st.integers(1, 40)),
        groups=groups,
        bits=draw(st.sampled_from([2, 3, 4, 8])),
        x_bits=8 if digits > 1 else draw(st.integers(2, 8)),
        digits=digits,
        dtype=dtype,
        x_scale=x_scale,
        x_zero=x_scale and groups == 1 and draw(st.booleans()),
        zeros=draw(st.booleans()),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


@many
@given(products())
def test_products_of_any_size(p: Product) -> None:
    assume(_native.takes_groups(p.bits, p.inputs, p.groups))
    draw = np.random.default_rng(p.seed)
    top = 2 ** (p.bits - 1)
    by_row, by_output = (p.stacks, p.rows, 1), (p.stacks, p.outputs, p.groups)
    integers = draw.integers(-top, top, (p.stacks, p.outputs, p.inputs)).astype(np.int8)
    scales = draw.uniform(0.01, 0.1, by_output).astype(np.float32)
    zeros = draw.integers(-top, top, by_output).astype(np.int8) if p.zeros else None
    bias = draw.normal(size=by_output[:2]).astype(np.float32) if p.bias else None
    shape = (p.stacks, p.rows, p.inputs)
    if p.dtype == "int8":
        x = draw.integers(-128, 128, shape).astype(np.int8)
    else:
        x = draw.normal(size=shape).astype(np.float32).astype(jnp.dtype(p.dtype))
    x_scale = draw.uniform(0.01, 0.1, by_row).astype(np.float32) if p.x_scale else None
    x_zero = None
    if p.x_zero:
        x_zero = draw.integers(-128, 128, by_row).astype(np.float32)
    out = _native.matmul(
        *_arrays(x, pack_bits(jnp.asarray(integers), p.bits), scales, zeros),
        **dict(
            zip(
                ("x_scale", "x_zero", "bias"),
                _arrays(x_scale, x_zero, bias),
                strict=True,
            )
        ),
        bits=p.bits,
        x_bits=p.x_bits,
        digits=p.digits,
    )
    assert out.dtype == (np.float32 if p.dtype == "int8" else x.dtype)
    left, error = _as_multiplied(p, x, x_scale, x_zero)
    shift = 0 if zeros is None else np.repeat(zeros, p.inputs // p.groups, 2)
    weight = (integers - np.float64(shift)) * np.repeat(
        scales.astype(np.float64), p.inputs // p.groups, 2
    )
    expected = left @ weight.transpose(0, 2, 1)
    size = np.abs(left) @ np.abs(weight).transpose(0, 2, 1)
    if bias is not None:
        expected = expected + bias[:, None]
    rounding = {"bfloat16": 2**-8, "float16": 2**-10}.get(p.dtype, 0.0)
    allowed = 2e-6 * size + rounding * np.abs(expected) + 1e-6
    allowed = allowed + error * np.abs(weight).sum(2)[:, None]
    assert (np.abs(np.asarray(out).astype(np.float64) - expected) <= allowed).all()


@st.composite
def windows(draw: Any) -> dict[str, Any]:
    """Arguments of `quantized_conv` but for the arrays, and their sizes."""
    axes = draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(axes))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(axes))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    return {
        "sizes": tuple(draw(st.integers(r, r + 9)) for r in reach),
        "channels": draw(st.integers(1, 20)),
        "outputs": draw(st.integers(1, 20)),
        "images": draw(st.integers(1, 3)),
        "bits": draw(st.sampled_from([2, 3, 4, 8])),
        "x_bits": draw(st.sampled_from([None, 4, 8])),
        "static": {
            "kernel": kernel,
            "strides": tuple(draw(st.integers(1, 3)) for _ in range(axes)),
            "padding": tuple(
                (draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(axes)
            ),
            "dilation": dilation,
        },
        "seed": draw(st.integers(0, 99)),
    }


@settings(many, max_examples=6 if SANITIZED else 10)
@given(windows())
def test_convolutions_of_any_size(w: dict[str, Any]) -> None:
    draw = np.random.default_rng(w["seed"])
    top = 2 ** (w["bits"] - 1)
    inputs = int(np.prod(w["static"]["kernel"])) * w["channels"]
    integers = draw.integers(-top, top, (w["outputs"], inputs)).astype(np.int8)
    scales = draw.uniform(0.01, 0.1, (w["outputs"], 1)).astype(np.float32)
    x = draw.normal(size=(w["images"], *w["sizes"], w["channels"]))
    outs = [
        quantized_conv(
            jnp.asarray(x, jnp.float32),
            pack_bits(jnp.asarray(integers), w["bits"]),
            jnp.asarray(scales),
            bits=w["bits"],
            x_bits=w["x_bits"],
            implementation=implementation,
            **w["static"],
        )
        for implementation in (Implementation.CPU, Implementation.REFERENCE)
    ]
    size = np.abs(x).max() * np.abs(integers * scales).sum(1).max()
    np.testing.assert_allclose(*outs, rtol=0, atol=2e-6 * size)


@settings(many, max_examples=6 if SANITIZED else 10)
@given(windows(), st.booleans(), st.booleans())
def test_convolutions_to_integers(w: dict[str, Any], each: bool, adds: bool) -> None:
    draw = np.random.default_rng(w["seed"])
    channels = w["channels"]
    # The other instructions have no kernels for groups.
    each = each and _native.instructions() in DIRECT
    outputs = channels if each else w["outputs"]
    places = int(np.prod(w["static"]["kernel"]))
    inputs = places * (1 if each else channels)
    integers = draw.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    scales = draw.uniform(0.01, 0.1, (outputs, 1)).astype(np.float32) / inputs
    shape = (w["images"], *w["sizes"], channels)
    x = jnp.asarray(draw.integers(-128, 128, shape).astype(np.int8))
    given = {
        "bits": 8,
        "groups": channels if each else 1,
        "x_bits": 8,
        "x_scale": jnp.float32(0.1),
        "x_zero": jnp.float32(3),
        "y_bits": 8,
        "y_scale": jnp.float32(0.5),
        "y_zero": jnp.float32(-4),
        **w["static"],
    }
    run = functools.partial(quantized_conv, x, integers, scales, **given)
    if adds:
        sums = draw.integers(-128, 128, run().shape).astype(np.int8)
        run = functools.partial(run, addend=jnp.asarray(sums), addend_scale=_TENTH)
    named = (Implementation.CPU, Implementation.REFERENCE)
    outs = [np.asarray(run(implementation=one), np.int32) for one in named]
    assert np.abs(outs[0] - outs[1]).max() <= 1
    assert (outs[0] != outs[1]).mean() < 0.02 or outs[0].size < 100


_TENTH = jnp.float32(0.1)


@settings(many, max_examples=6 if SANITIZED else 10)
@given(windows(), st.booleans())
def test_pools_of_any_size(w: dict[str, Any], floats: bool) -> None:
    shape = (w["images"], *w["sizes"], w["channels"] * 7)
    numbers = np.random.default_rng(w["seed"]).integers(-128, 128, shape)
    x = jnp.asarray(numbers.astype(np.float32 if floats else np.int8))
    window = w["static"]["kernel"]
    padding = tuple(
        (min(low, size - 1), min(high, size - 1))
        for (low, high), size in zip(w["static"]["padding"], window, strict=True)
    )
    given = {"window": window, "strides": w["static"]["strides"], "padding": padding}
    outs = [
        max_pool(x, implementation=one, **given)
        for one in (Implementation.CPU, Implementation.REFERENCE)
    ]
    np.testing.assert_array_equal(*outs)


def _arrays(*arrays: Any) -> list[jax.Array | None]:
    return [None if a is None else jnp.asarray(a) for a in arrays]


def _as_multiplied(p: Product, x: Any, x_scale: Any, x_zero: Any) -> tuple[Any, Any]:
    """What the activations are rounded to, in float64, and what may be missing."""
    wide = x.astype(np.float32)
    top = np.abs(wide).max(2, keepdims=True, initial=0)
    if p.digits > 1:
        exact = top * (254.0**-p.digits + 2.0**-23)
        return wide.astype(np.float64), exact
    high = np.float32(2 ** (p.x_bits - 1) - 1)
    if x_scale is None:
        x_scale = top * (np.float32(1) / high)
    zero = np.float32(0) if x_zero is None else x_zero
    if p.dtype != "int8":
        low = -high if x_zero is None else -high - 1
        wide = np.clip(np.rint(wide * (np.float32(1) / x_scale)) + zero, low, high)
    return (wide - zero).astype(np.float64) * x_scale, 0.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 5}, "bits is 2, 3, 4 or 8"),
        ({"x_bits": 9}, "x_bits is from 2 to 8"),
        ({"digits": 4}, "digits is from 1 to 3"),
        ({"values": jnp.zeros((1, 3, 7), jnp.int8)}, "values"),
        ({"scales": jnp.ones((1, 3, 3))}, "groups do not fit"),
        ({"zeros": jnp.zeros((1, 2, 1), jnp.int8)}, "zeros"),
        ({"bias": jnp.zeros((1, 2))}, "bias"),
        ({"x_scale": jnp.ones((1, 3, 1))}, "x_scale"),
        ({"x_zero": jnp.ones((1, 2, 1))}, "x_scale is missing"),
        ({"x": jnp.ones((1, 2, 8), jnp.int32)}, "dtype of x"),
    ],
)
def test_a_handler_refuses_what_does_not_fit(changed: Any, message: str) -> None:
    arguments: dict[str, Any] = {
        "x": jnp.ones((1, 2, 8)),
        "values": jnp.zeros((1, 3, 8), jnp.int8),
        "scales": jnp.ones((1, 3, 1)),
        "zeros": None,
        "bits": 8,
        "x_bits": 8,
        "digits": 1,
        **changed,
    }
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        _native.matmul(**arguments).block_until_ready()


@pytest.mark.skipif(not SANITIZED, reason="no other library is named")
def test_the_library_that_is_named_is_the_one_in_use() -> None:
    found = _native.library()
    assert found is not None
    assert found._name == SANITIZED


@pytest.mark.skipif(bool(SANITIZED), reason="each set has a process of its own there")
def test_the_variable_chooses_among_what_the_processor_has() -> None:
    code = "from jcompress.kernels import _native; print(_native.instructions())"
    environment = {**os.environ, "JCOMPRESS_INSTRUCTIONS": "generic"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "generic"


@many
@given(
    stacks=st.sampled_from([1, 1, 3]),
    outputs=st.integers(1, 70),
    groups=st.sampled_from([1, 1, 2, 5]),
    size=st.integers(1, 90),
    bits=st.sampled_from([2, 3, 4, 8]),
    zeros=st.booleans(),
    seed=st.integers(0, 99),
)
def test_dense(
    stacks: int,
    outputs: int,
    groups: int,
    size: int,
    bits: int,
    zeros: bool,
    seed: int,
) -> None:
    draw = np.random.default_rng(seed)
    top, inputs = 2 ** (bits - 1), groups * size
    integers = draw.integers(-top, top, (stacks, outputs, inputs)).astype(np.int8)
    scales = draw.normal(size=(stacks, outputs, groups)).astype(np.float32)
    shifts = draw.integers(-top, top, scales.shape).astype(np.int8) if zeros else None
    weight = _native.Stored(
        pack_bits(jnp.asarray(integers), bits),
        jnp.asarray(scales),
        None if shifts is None else jnp.asarray(shifts),
        bits,
        (stacks, inputs, outputs),
    )
    found, again = _native.dense([weight, weight])
    np.testing.assert_array_equal(found, again)
    by_group = integers.reshape(stacks, outputs, groups, size).astype(np.float32)
    if shifts is not None:
        by_group = by_group - shifts[..., None]
    wanted = (by_group * scales[..., None]).reshape(stacks, outputs, inputs)
    np.testing.assert_array_equal(found, wanted.swapaxes(1, 2))


def test_products_called_by_many_threads_at_once() -> None:
    """Helpers that stay for more work serve every caller; nothing changes a bit."""
    draw = np.random.default_rng(0)
    # So few products that no helper is asked, one that is awake, and any.
    calls = []
    for rows, inputs, outputs in ((1, 256, 64), (1, 512, 160), (2, 768, 512)):
        integers = draw.integers(0, 256, (1, outputs, inputs // 2)).astype(np.uint8)
        scales = draw.uniform(0.01, 0.1, (1, outputs, inputs // 32)).astype(np.float32)
        x = draw.normal(size=(1, rows, inputs)).astype(np.float32)
        calls.append(_arrays(x, integers, scales))

    @jax.jit
    def product(x: jax.Array, values: jax.Array, scales: jax.Array) -> jax.Array:
        return _native.matmul(x, values, scales, None, bits=4, x_bits=8, digits=1)

    alone = [np.asarray(product(*arrays)) for arrays in calls]

    def run(thread: int) -> None:
        for i in range(60):
            which = (i + thread) % len(calls)
            np.testing.assert_array_equal(product(*calls[which]), alone[which])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))

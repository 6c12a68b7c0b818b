"""What every implementation of an operation must do; backends subclass these.

A subclass sets `implementation`, and may narrow `dtypes`, widen `tolerance`, or name
what the form `may_refuse`:

    class TestXla(WeightOnlyMatmul):
        implementation = Implementation.XLA
"""

import functools
import re
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.formats import Float8, Int
from jcompress.kernels import (
    Elementwise,
    Implementation,
    Nonlinearity,
    float8_matmul,
    int8_matmul,
    weight_only_matmul,
)
from jcompress.quantization import PerChannel, PerGroup, PerTensor, Weights
from jcompress.tensors.ranges import range_of, scale_and_zero
from jcompress.tensors.rounding import fake_quantize, quantize_values

GRANULARITIES = {
    "tensor": PerTensor(),
    "channel": PerChannel(),
    "group": PerGroup(8),
    "odd_group": PerGroup(3),
}
SHAPES = {
    "one_row": ((1,), 48, 20),
    "two_rows": ((2,), 24, 7),
    "batches": ((2, 3), 48, 5),
    "many_rows": ((130,), 24, 9),
    "one_output": ((5,), 24, 1),
    "no_batch_axis": ((), 24, 6),
    "nothing": ((0,), 24, 4),
    "nothing_in_batches": ((3, 0), 24, 4),
    "odd_inputs": ((4,), 33, 6),
    "one_input": ((4,), 1, 3),
}


def normal(shape: tuple[int, ...], dtype: Any = jnp.float32, seed: int = 0) -> Any:
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return jnp.asarray(x.astype(dtype))


def weight(
    outputs: int, inputs: int, spec: Weights, seed: int = 1
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The numbers, not packed, with scales and zeros: all in NumPy, compiling nothing.

    `quantize_matrix` has tests of its own; here any stored weight will do.
    """
    matrix = np.random.default_rng(seed).normal(size=(outputs, inputs)) + 0.25
    kind = spec.granularity
    size = kind.size if isinstance(kind, PerGroup) else max(inputs, 1)
    grouped = matrix.reshape(outputs, -1, size)
    over = (0, 1, 2) if isinstance(kind, PerTensor) else (2,)
    low = np.minimum(grouped.min(over, keepdims=True, initial=0), 0)
    high = np.maximum(grouped.max(over, keepdims=True, initial=0), 0)
    floating, bits = isinstance(spec.format, Float8), spec.format.bits
    top = 448 if floating else 2 ** (bits - 1) - 1
    least, zeros = -top, None
    if spec.format.symmetric:
        scales = np.maximum(-low, high) / top
    else:
        least, scales = -top - 1, (high - low) / (2 * top + 1)
        zeros = np.rint(least - low / scales)
    values = grouped / scales + (0 if zeros is None else zeros)
    if not floating:
        values = np.clip(np.rint(values), least, top)
    kept = values.reshape(outputs, inputs).astype(
        jnp.float8_e4m3fn if floating else np.int8
    )
    moved = None if zeros is None else jnp.asarray(zeros[..., 0].astype(np.int8))
    return jnp.asarray(kept), jnp.asarray(scales[..., 0].astype(np.float32)), moved


# One program for each case rather than one for each operation in it:
_weight_only_matmul = jax.jit(
    weight_only_matmul, static_argnames=("bits", "x_bits", "then", "implementation")
)
_int8_matmul = jax.jit(
    int8_matmul, static_argnames=("x_bits", "then", "implementation")
)
_float8_matmul = jax.jit(float8_matmul, static_argnames="implementation")


def stored(values: jax.Array, bits: int) -> jax.Array:
    """What `pack_bits` makes of integers, by NumPy."""
    if bits > 4:
        return values
    each = (np.asarray(values)[..., None] >> np.arange(bits, dtype=np.int8)) & 1
    stream = each.astype(np.uint8).reshape(*values.shape[:-1], -1)
    return jnp.asarray(np.packbits(stream, axis=-1, bitorder="little"))


def dense_of(values: Any, scales: Any, zeros: Any = None) -> Any:
    """The float32 matrix that stored numbers stand for, in NumPy."""
    numbers, scales = np.asarray(values), np.asarray(scales)
    grouped = numbers.astype(np.float32).reshape(len(numbers), scales.shape[-1], -1)
    if zeros is not None:
        grouped = grouped - np.asarray(zeros, np.float32)[..., None]
    return (grouped * scales[..., None]).reshape(numbers.shape)


def followed(y: Any, given: dict[str, Any]) -> Any:
    """What follows float32 products, by plain JAX."""
    then = given.get("then")
    y = jnp.asarray(y, jnp.float32)
    if "bias" in given:
        y = y + jnp.broadcast_to(given["bias"], y.shape)
    if then is not None and then.activation is not None:
        y = then.activation(y)
    for name, apply in (("factor", jnp.multiply), ("residual", jnp.add)):
        if name in given:
            y = apply(y, given[name].astype(jnp.float32))
    return y


def follow_ups(shape: tuple[int, ...], dtype: Any) -> list[dict[str, Any]]:
    """Each activation, each array alone, and all together."""
    arrays = {
        "bias": normal(shape[-1:], seed=4),
        "factor": normal(shape, dtype, seed=5),
        "residual": normal(shape, dtype, seed=6),
    }
    each = [{"then": Elementwise(activation=one)} for one in Nonlinearity]
    alone = [{name: array} for name, array in arrays.items()]
    both = {"then": Elementwise(activation=Nonlinearity.GELU), **arrays}
    return [*each, *alone, {"then": Elementwise(), **arrays}, both]


def check_following(
    product: Callable[..., jax.Array], x: jax.Array, outputs: int, some: slice
) -> None:
    """Compare `product(x, ...)` and what follows with plain JAX after a product."""
    plain = product(x.astype(jnp.float32))
    top = 2e-6 if x.dtype == jnp.float32 else 2**-7
    for given in follow_ups((*x.shape[:-1], outputs), x.dtype)[some]:
        out = product(x, **given)
        assert out.dtype == x.dtype
        expected = followed(plain, given)
        size = float(jnp.abs(expected).max(initial=1e-6))
        error = jnp.abs(out.astype(jnp.float32) - expected)
        assert float(error.max(initial=0)) <= top * max(size, 1), given.keys()


def check_gradient_of_following(
    product: Callable[..., jax.Array], x: jax.Array, outputs: int
) -> None:
    """With respect to `x`, `factor` and `residual`; stacked by `vmap` as well."""
    given = follow_ups((*x.shape[:-1], outputs), x.dtype)[-1]
    then, bias = given.pop("then"), given.pop("bias")

    def one(x: Any, factor: Any, residual: Any) -> jax.Array:
        return product(x, then=then, bias=bias, factor=factor, residual=residual)

    def parts(x: Any, factor: Any, residual: Any) -> jax.Array:
        after = {"bias": bias, "then": then, "factor": factor, "residual": residual}
        out: jax.Array = followed(product(x), after)
        return out

    args = (x, *given.values())
    cotangent = normal((*x.shape[:-1], outputs), seed=7)
    expected_out, pull = jax.vjp(parts, *args)
    expected = pull(cotangent)
    for run in (one, jax.vmap(one)):
        out, pull = jax.vjp(run, *args)
        for got, want in zip(
            (out, *pull(cotangent)), (expected_out, *expected), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


class WeightOnlyMatmul:
    """Conformance of an implementation of `weight_only_matmul`.

    What it refuses with a reason in which `may_refuse` is found is skipped.
    """

    may_refuse: ClassVar[str] = ""
    implementation: ClassVar[Implementation | None]
    dtypes: ClassVar[tuple[Any, ...]] = (jnp.float32, jnp.bfloat16)
    tolerance: ClassVar[dict[str, float]] = {
        "float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-10,
    }  # fmt: skip

    def run(
        self,
        x: jax.Array,
        *arrays: Any,
        bits: int,
        x_bits: int | None = None,
        **after: Any,
    ) -> jax.Array:
        given = {"bits": bits, "x_bits": x_bits, "implementation": self.implementation}
        try:
            return _weight_only_matmul(x, *arrays, **given, **after)
        except NotImplementedError as refusal:
            if not self.may_refuse or not re.search(self.may_refuse, str(refusal)):
                raise
            return pytest.skip(str(refusal))

    def check(
        self,
        x: jax.Array,
        weight: Any,
        bits: int,
        out: jax.Array,
        x_bits: int | None = None,
    ) -> None:
        """Compare with a product in float64.

        Rounding errors are relative to the largest element of a row times the sum of
        the absolute weights, since a form may work in fixed point.
        """
        values, scales, zeros = weight
        dense = dense_of(values, scales, zeros)
        wide = np.asarray(x).astype(np.float64)
        if x_bits is not None:
            rows = x.astype(jnp.float32)
            scale, _ = scale_and_zero(range_of(rows, -1), Int(x_bits))
            q = quantize_values(rows, scale, None, Int(x_bits))
            wide = np.asarray(q).astype(np.float64) * np.asarray(scale)
        assert out.shape == (*x.shape[:-1], values.shape[0])
        assert out.dtype == x.dtype
        expected = wide @ dense.T.astype(np.float64)
        top = np.abs(wide).max(-1, initial=0, keepdims=True)
        size = top * np.abs(dense).sum(1)
        error = np.abs(np.asarray(out).astype(np.float64) - expected)
        assert (error <= self.tolerance[x.dtype.name] * size).all(), error.max()

    @pytest.mark.parametrize("granularity", GRANULARITIES)
    @pytest.mark.parametrize("symmetric", [True, False])
    @pytest.mark.parametrize("bits", [3, 8])
    def test_formats(self, bits: int, symmetric: bool, granularity: str) -> None:
        spec = Weights(
            format=Int(bits, symmetric=symmetric),
            granularity=GRANULARITIES[granularity],
        )
        w = weight(10, 48, spec)
        for dtype in self.dtypes:
            x = normal((3, 48), dtype)
            out = self.run(x, stored(w[0], bits), *w[1:], bits=bits)
            self.check(x, w, bits, out)

    @pytest.mark.parametrize(
        ("rows", "granularity"), [(1, "channel"), (70, "tensor"), (3, "group")]
    )
    def test_weights_of_float8(self, rows: int, granularity: str) -> None:
        spec = Weights(format=Float8(), granularity=GRANULARITIES[granularity])
        w = weight(10, 48, spec)
        for dtype in self.dtypes:
            x = normal((rows, 48), dtype)
            self.check(x, w, 8, self.run(x, *w, bits=8))

    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes(self, shape: str, bits: int) -> None:
        batch, inputs, outputs = SHAPES[shape]
        kinds = [PerChannel(), PerGroup(8)] if inputs % 8 == 0 else [PerTensor()]
        for kind in kinds:
            w = weight(outputs, inputs, Weights(format=Int(bits), granularity=kind))
            for dtype in self.dtypes:
                x = normal((*batch, inputs), dtype)
                out = self.run(x, stored(w[0], bits), *w[1:], bits=bits)
                self.check(x, w, bits, out)

    @pytest.mark.parametrize("shape", ["one_row", "odd_inputs", "one_input"])
    @pytest.mark.parametrize("bits", [2, 3])
    def test_shapes_of_packed_integers(self, bits: int, shape: str) -> None:
        batch, inputs, outputs = SHAPES[shape]
        w = weight(outputs, inputs, Weights(format=Int(bits, symmetric=False)))
        x = normal((*batch, inputs))
        out = self.run(x, stored(w[0], bits), *w[1:], bits=bits)
        self.check(x, w, bits, out)

    @pytest.mark.parametrize(
        ("rows", "bits", "x_bits", "granularity"),
        [
            (0, 8, 8, "channel"),
            (1, 3, 8, "group"),
            (1, 4, 8, "channel"),
            (1, 8, 4, "group"),
            (60, 4, 8, "group"),
            (60, 8, 8, "channel"),
        ],
    )
    def test_quantized_activations(
        self, rows: int, bits: int, x_bits: int, granularity: str
    ) -> None:
        spec = Weights(
            format=Int(bits, symmetric=False), granularity=GRANULARITIES[granularity]
        )
        w = weight(10, 48, spec)
        for dtype in self.dtypes:
            x = normal((rows, 48), dtype)
            given = {"bits": bits, "x_bits": x_bits}
            out = self.run(x, stored(w[0], bits), *w[1:], **given)
            self.check(x, w, bits, out, x_bits)

    @pytest.mark.parametrize(("rows", "bits"), [(1, 4), (200, 8)])
    def test_without_jit(self, rows: int, bits: int) -> None:
        w = weight(10, 48, Weights(format=Int(bits, symmetric=False)))
        x = normal((rows, 48))
        given = {"bits": bits, "implementation": self.implementation}
        out = weight_only_matmul(x, stored(w[0], bits), *w[1:], **given)
        self.check(x, w, bits, out)

    @pytest.mark.parametrize("symmetric", [True, False])
    @pytest.mark.parametrize(("bits", "x_bits"), [(4, None), (8, None), (3, 8)])
    def test_vmap_over_stacked_weights(
        self, bits: int, x_bits: int | None, symmetric: bool
    ) -> None:
        spec = Weights(format=Int(bits, symmetric=symmetric), granularity=PerGroup(8))
        ws = [weight(6, 24, spec, seed=seed) for seed in range(3)]
        stack = jax.tree.map(lambda *parts: jnp.stack(parts), *ws)
        x = normal((3, 4, 24))
        f = jax.vmap(lambda x, *w: self.run(x, *w, bits=bits, x_bits=x_bits))
        out = f(x, stored(stack[0], bits), *stack[1:])
        for i, w in enumerate(ws):
            self.check(x[i], w, bits, out[i], x_bits)

    def test_vmap_in_vmap(self) -> None:
        """Every copy of the weight meets every batch; axes lie anywhere."""
        ws = [weight(6, 24, Weights(), seed=seed) for seed in range(3)]
        values = jnp.stack([w[0] for w in ws], axis=2)
        scales = jnp.stack([w[1] for w in ws])
        x = normal((4, 24, 2))

        def both(x: jax.Array, values: jax.Array, scales: jax.Array) -> jax.Array:
            return jax.vmap(lambda x: self.run(x, values, scales, bits=8), 2, 1)(x)

        out = jax.vmap(both, (None, 2, 0))(x, values, scales)
        for i, w in enumerate(ws):
            for batch in range(2):
                self.check(x[:, :, batch], w, 8, out[i][:, batch])

    def test_vmap_over_activations(self) -> None:
        w = weight(6, 24, Weights())
        x = normal((5, 24))
        out = jax.vmap(lambda x: self.run(x, *w, bits=8))(x)
        self.check(x, w, 8, out)

    @pytest.mark.parametrize("granularity", ["channel", "odd_group"])
    @pytest.mark.parametrize("bits", [4, 8])
    def test_gradient(self, bits: int, granularity: str) -> None:
        spec = Weights(
            format=Int(bits, symmetric=False), granularity=GRANULARITIES[granularity]
        )
        values, scales, zeros = weight(6, 33, spec)
        dense = dense_of(values, scales, zeros)
        cotangent = normal((2, 3, 6), seed=3)
        for dtype in self.dtypes:
            x = normal((2, 3, 33), dtype)

            def f(x: jax.Array) -> jax.Array:
                return self.run(x, stored(values, bits), scales, zeros, bits=bits)

            (dx,) = jax.vjp(f, x)[1](cotangent.astype(dtype))
            assert dx.dtype == x.dtype
            expected = cotangent.astype(dtype).astype(jnp.float32) @ dense
            rtol = 1e-5 if dtype == jnp.float32 else 2**-7
            np.testing.assert_allclose(
                dx.astype(jnp.float32), expected, rtol=rtol, atol=rtol
            )

    def test_gradient_is_straight_through_the_rounding(self) -> None:
        values, scales, zeros = weight(6, 24, Weights(format=Int(4, symmetric=False)))
        dense = dense_of(values, scales, zeros)
        x, cotangent = normal((5, 24)), normal((5, 6), seed=3)

        def f(x: jax.Array) -> jax.Array:
            return self.run(x, stored(values, 4), scales, zeros, bits=4, x_bits=4)

        (dx,) = jax.vjp(f, x)[1](cotangent)
        np.testing.assert_allclose(dx, cotangent @ dense, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("rows", "bits", "x_bits", "granularity", "some"),
        [
            (1, 8, 8, "channel", slice(-3, None)),
            (3, 4, None, "group", slice(-3, None)),
            (70, 8, 8, "channel", slice(None)),
            (70, 4, 8, "group", slice(-1, None)),
            (70, 4, None, "channel", slice(-1, None)),
            (0, 8, None, "channel", slice(-1, None)),
        ],
    )
    def test_what_follows(
        self, rows: int, bits: int, x_bits: int | None, granularity: str, some: slice
    ) -> None:
        spec = Weights(
            format=Int(bits, symmetric=False), granularity=GRANULARITIES[granularity]
        )
        values, *rest = weight(21, 48, spec)
        run = functools.partial(self.run, bits=bits, x_bits=x_bits)

        def product(x: jax.Array, **after: Any) -> jax.Array:
            return run(x, stored(values, bits), *rest, **after)

        for dtype in self.dtypes:
            check_following(product, normal((rows, 48), dtype), 21, some)

    def test_gradient_of_what_follows(self) -> None:
        values, *rest = weight(6, 24, Weights(format=Int(4, symmetric=False)))

        def product(x: jax.Array, **after: Any) -> jax.Array:
            return self.run(x, stored(values, 4), *rest, bits=4, **after)

        check_gradient_of_following(product, normal((3, 5, 24)), 6)

    def test_in_a_loop_that_recomputes(self) -> None:
        ws = [weight(24, 24, Weights(format=Int(4)), seed=seed) for seed in range(3)]
        stack = jax.tree.map(lambda *parts: jnp.stack(parts), *ws)
        packed, scales = stored(stack[0], 4), stack[1]
        x = normal((2, 24))

        def layers(x: jax.Array, how: Any) -> jax.Array:
            def layer(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
                return jnp.tanh(self.run(x, *w, bits=4)), None

            return jnp.sum(jax.lax.scan(how(layer), x, (packed, scales))[0])

        def dense(x: jax.Array) -> jax.Array:
            for values, scale, _ in ws:
                matrix = dense_of(values, scale)
                x = jnp.tanh(x @ matrix.T)
            return jnp.sum(x)

        for how in (jax.checkpoint, lambda f: f):
            got = jax.jit(jax.grad(lambda x, how=how: layers(x, how)))(x)
            np.testing.assert_allclose(got, jax.grad(dense)(x), rtol=1e-4, atol=1e-6)

    def test_a_number_that_is_not_finite_spoils_its_row_only(self) -> None:
        w = weight(6, 24, Weights())
        x = normal((4, 24)).at[1, 2].set(jnp.nan).at[2, 0].set(jnp.inf)
        out = self.run(x, *w, bits=8)
        assert not bool(jnp.isfinite(out[1:3]).any())
        self.check(x[:1], w, 8, out[:1])
        self.check(x[3:], w, 8, out[3:])

    def test_rows_of_very_different_sizes(self) -> None:
        w = weight(6, 24, Weights())
        x = normal((4, 24)) * jnp.asarray([[1e-20], [0.0], [1.0], [1e20]])
        self.check(x, w, 8, self.run(x, *w, bits=8))


class Int8Matmul:
    """Conformance of an implementation of `int8_matmul`: sums are exact."""

    implementation: ClassVar[Implementation | None]
    dtypes: ClassVar[tuple[Any, ...]] = (jnp.float32, jnp.bfloat16)

    def run(self, x: jax.Array, *weight: Any, **given: Any) -> jax.Array:
        return _int8_matmul(x, *weight, implementation=self.implementation, **given)

    def expect(
        self, q: Any, x_scale: Any, x_zero: Any, weight: Any
    ) -> np.ndarray[Any, Any]:
        values, scales, zeros = (
            None if part is None else np.asarray(part) for part in weight
        )
        left = np.asarray(q).astype(np.int64)
        left = left - (0 if x_zero is None else np.asarray(x_zero).astype(np.int64))
        right = values.astype(np.int64)
        right = right - (0 if zeros is None else zeros.astype(np.int64))
        sums = (left @ right.T).astype(np.float32)
        scaled: np.ndarray[Any, Any] = sums * np.asarray(x_scale) * scales[:, 0]
        return scaled

    @pytest.mark.parametrize("x_symmetric", [True, False])
    @pytest.mark.parametrize("symmetric", [True, False])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_integers(self, shape: str, symmetric: bool, x_symmetric: bool) -> None:
        batch, inputs, outputs = SHAPES[shape]
        rng = np.random.default_rng(2)
        q = jnp.asarray(rng.integers(-128, 128, (*batch, inputs)), jnp.int8)
        x_scale = jnp.asarray(rng.uniform(0.01, 0.1, (*batch, 1)), jnp.float32)
        x_zero = jnp.asarray(rng.integers(-128, 128, (*batch, 1)), jnp.float32)
        zero = None if x_symmetric else x_zero
        for kind in (PerChannel(), PerTensor()):
            spec = Weights(format=Int(8, symmetric=symmetric), granularity=kind)
            w = weight(outputs, inputs, spec)
            out = self.run(q, *w, x_scale=x_scale, x_zero=zero)
            assert out.dtype == jnp.float32
            expected = self.expect(q, x_scale, zero, w)
            np.testing.assert_allclose(out, expected, rtol=1e-6)

    @pytest.mark.parametrize("rows", [1, 3])
    def test_sums_of_extremes_do_not_overflow(self, rows: int) -> None:
        inputs = 70_000
        q = jnp.full((rows, inputs), 127, jnp.int8)
        values = jnp.full((2, inputs), -128, jnp.int8)
        scales = jnp.ones((2, 1))
        zeros = jnp.full((2, 1), 127, jnp.int8)
        out = self.run(
            q, values, scales, zeros, x_scale=jnp.ones(()), x_zero=jnp.float32(-128)
        )
        np.testing.assert_allclose(out, -255.0 * 255.0 * inputs, rtol=1e-6)

    @pytest.mark.parametrize("x_bits", [4, 8])
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_floats_are_fake_quantized(self, symmetric: bool, x_bits: int) -> None:
        w = weight(10, 48, Weights(format=Int(8, symmetric=False)))
        dense = dense_of(*w)
        for dtype in self.dtypes:
            x = normal((2, 3, 48), dtype)
            span = range_of(x, -1)
            scale, zero = scale_and_zero(span, Int(x_bits, symmetric=symmetric))
            given = {"x_scale": scale, "x_zero": zero, "x_bits": x_bits}
            out = self.run(x, *w, **given)
            assert out.dtype == x.dtype
            faked = fake_quantize(
                x.astype(jnp.float32), scale, zero, Int(x_bits, symmetric=symmetric)
            )
            rtol = 1e-5 if dtype == jnp.float32 else 2**-8
            np.testing.assert_allclose(
                out.astype(jnp.float32), faked @ dense.T, rtol=rtol, atol=1e-4
            )
            if symmetric:
                np.testing.assert_array_equal(self.run(x, *w, x_bits=x_bits), out)

    def test_without_jit(self) -> None:
        w = weight(10, 48, Weights(format=Int(8, symmetric=False)))
        x = normal((5, 48))
        out = int8_matmul(x, *w, implementation=self.implementation)
        np.testing.assert_allclose(out, self.run(x, *w), rtol=1e-6)

    def test_vmap_over_stacked_weights(self) -> None:
        ws = [
            weight(6, 24, Weights(format=Int(8, symmetric=False)), seed=seed)
            for seed in range(3)
        ]
        stack = jax.tree.map(lambda *parts: jnp.stack(parts), *ws)
        x = normal((3, 4, 24))
        scale, zero = scale_and_zero(range_of(x, -1), Int(8, symmetric=False))
        f = jax.vmap(lambda x, s, z, *w: self.run(x, *w, x_scale=s, x_zero=z))
        out = f(x, scale, zero, *stack)
        for i, w in enumerate(ws):
            one = self.run(x[i], *w, x_scale=scale[i], x_zero=zero[i])
            np.testing.assert_allclose(out[i], one, rtol=1e-6)

    @pytest.mark.parametrize("dynamic", [True, False])
    def test_bias(self, dynamic: bool) -> None:
        w = weight(10, 48, Weights(format=Int(8, symmetric=False)))
        bias = normal((10,), seed=4)
        for dtype in self.dtypes:
            x = normal((2, 3, 48), dtype)
            given = {} if dynamic else {"x_scale": jnp.float32(0.03)}
            plain = self.run(x.astype(jnp.float32), *w, **given)
            out = self.run(x, *w, bias=bias, **given)
            assert out.dtype == dtype
            expected = np.asarray(plain) + np.asarray(bias)
            rtol = 1e-5 if dtype == jnp.float32 else 2**-8
            np.testing.assert_allclose(
                out.astype(jnp.float32), expected, rtol=rtol, atol=1e-5
            )

    def test_stacked_biases_and_their_gradient(self) -> None:
        ws = [weight(6, 24, Weights(), seed=seed)[:2] for seed in range(3)]
        stack = jax.tree.map(lambda *parts: jnp.stack(parts), *ws)
        x, bias = normal((3, 4, 24)), normal((3, 6), seed=4)

        def f(x: jax.Array, bias: jax.Array) -> jax.Array:
            run = jax.vmap(lambda x, v, s, b: self.run(x, v, s, bias=b))
            return run(x, *stack, bias)

        out, pull = jax.vjp(f, x, bias)
        for i, w in enumerate(ws):
            one = self.run(x[i], *w, bias=bias[i])
            np.testing.assert_allclose(out[i], one, rtol=1e-5, atol=1e-5)
        cotangent = normal(out.shape, seed=5)
        dx, by_bias = pull(cotangent)
        np.testing.assert_allclose(by_bias, cotangent.sum(1), rtol=1e-5, atol=1e-5)
        for i, (values, scales) in enumerate(ws):
            dense = dense_of(values, scales)
            expected = cotangent[i] @ dense
            np.testing.assert_allclose(dx[i], expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("rows", "some"),
        [((1,), slice(None)), ((2, 35), slice(-3, None)), ((3,), slice(-1, None))],
    )
    def test_what_follows(self, rows: tuple[int, ...], some: slice) -> None:
        w = weight(21, 48, Weights(format=Int(8, symmetric=False)))
        for dtype in self.dtypes:
            x = normal((*rows, 48), dtype)
            product = functools.partial(self._product, w)
            check_following(product, x, 21, some)

    def _product(self, w: Any, x: jax.Array, **after: Any) -> jax.Array:
        return self.run(x, *w, **after)

    def test_gradient_of_what_follows(self) -> None:
        w = weight(6, 24, Weights(format=Int(8, symmetric=False)))
        product = functools.partial(self._product, w)
        check_gradient_of_following(product, normal((3, 5, 24)), 6)

    def test_gradient_stops_where_x_is_clipped(self) -> None:
        w = weight(6, 24, Weights(format=Int(8, symmetric=False)))
        dense = dense_of(*w)
        x = normal((5, 24))
        scale = jnp.float32(1 / 127)
        cotangent = normal((5, 6), seed=3)
        (dx,) = jax.vjp(lambda x: self.run(x, *w, x_scale=scale), x)[1](cotangent)
        inside = np.abs(np.rint(np.asarray(x) * 127)) <= 127
        assert 0 < inside.mean() < 1
        expected = np.where(inside, np.asarray(cotangent @ dense), 0)
        np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-5)


class Float8Matmul:
    """Conformance of an implementation of `float8_matmul`: float32 sums."""

    implementation: ClassVar[Implementation | None]
    dtypes: ClassVar[tuple[Any, ...]] = (jnp.float32, jnp.bfloat16)

    def run(self, x: jax.Array, *weight: Any, **given: Any) -> jax.Array:
        return _float8_matmul(x, *weight, implementation=self.implementation, **given)

    def check(
        self, q: Any, x_scale: Any, weight: Any, out: jax.Array, bias: Any = 0.0
    ) -> None:
        """Compare with a product in float64."""
        values, scales, _ = weight
        left = np.asarray(q).astype(np.float64) * np.asarray(x_scale, np.float64)
        right = np.asarray(values).astype(np.float64)
        right = right * np.asarray(scales, np.float64)
        error = np.abs(np.asarray(out, np.float64) - (left @ right.T + bias))
        size = np.abs(left) @ np.abs(right).T + np.abs(bias)
        tolerance = 2e-6 if out.dtype == jnp.float32 else 2**-8
        assert (error <= tolerance * size).all(), error.max()

    @pytest.mark.parametrize(
        "shape", ["one_row", "batches", "no_batch_axis", "nothing", "odd_inputs"]
    )
    def test_stored_numbers(self, shape: str) -> None:
        batch, inputs, outputs = SHAPES[shape]
        q = (normal((*batch, inputs)) * np.float32(50)).astype(jnp.float8_e4m3fn)
        drawn = np.random.default_rng(2).uniform(0.01, 0.1, (*batch, 1))
        x_scale = jnp.asarray(drawn, jnp.float32)
        kind = PerTensor() if shape == "batches" else PerChannel()
        w = weight(outputs, inputs, Weights(format=Float8(), granularity=kind))
        out = self.run(q, *w[:2], x_scale=x_scale)
        assert out.dtype == jnp.float32
        assert out.shape == (*batch, outputs)
        self.check(q, x_scale, w, out)

    def test_floats_are_rounded(self) -> None:
        w = weight(10, 48, Weights(format=Float8()))
        bias = normal((10,), seed=4)
        for dtype in self.dtypes:
            x = normal((2, 3, 48), dtype)
            wide = x.astype(jnp.float32)
            scale, _ = scale_and_zero(range_of(wide, -1), Float8())
            q = quantize_values(wide, scale, None, Float8())
            out = self.run(x, *w[:2], x_scale=scale, bias=bias)
            assert out.dtype == dtype
            self.check(q, scale, w, out, np.asarray(bias, np.float64))
            own = self.run(x, *w[:2], bias=bias)
            np.testing.assert_array_equal(own, out)
        plain = float8_matmul(x, *w[:2], bias=bias, implementation=self.implementation)
        np.testing.assert_array_equal(plain, out)

    def test_rows_are_apart(self) -> None:
        """NaN spoils its row only, and no size is lost."""
        w = weight(6, 24, Weights(format=Float8()))
        x = normal((5, 24)) * jnp.asarray([[1e-20], [0.0], [1.0], [1e20], [1.0]])
        out = self.run(x.at[4, 2].set(jnp.nan), *w[:2])
        assert bool(jnp.isnan(out[4]).all())
        scale, _ = scale_and_zero(range_of(x, -1), Float8())
        q = quantize_values(x, scale, None, Float8())
        self.check(q[:4], scale[:4], w, out[:4])

    def test_vmap_and_gradient_of_stacks(self) -> None:
        ws = [weight(6, 24, Weights(format=Float8()), seed=seed) for seed in range(3)]
        values, scales = (jnp.stack([w[i] for w in ws]) for i in (0, 1))
        x, bias = normal((3, 4, 24)), normal((3, 6), seed=4)

        def f(x: jax.Array, bias: jax.Array) -> jax.Array:
            run = jax.vmap(lambda x, v, s, b: self.run(x, v, s, bias=b))
            return run(x, values, scales, bias)

        out, pull = jax.vjp(f, x, bias)
        cotangent = normal(out.shape, seed=5)
        dx, by_bias = pull(cotangent)
        np.testing.assert_allclose(by_bias, cotangent.sum(1), rtol=1e-5, atol=1e-5)
        for i, w in enumerate(ws):
            one = self.run(x[i], *w[:2], bias=bias[i])
            np.testing.assert_allclose(out[i], one, rtol=1e-5, atol=1e-5)
            dense = dense_of(*w)
            expected = cotangent[i] @ dense
            np.testing.assert_allclose(dx[i], expected, rtol=1e-5, atol=1e-5)

    def test_gradient_stops_where_x_is_clipped(self) -> None:
        w = weight(6, 24, Weights(format=Float8()))
        x, cotangent = normal((5, 24)), normal((5, 6), seed=3)
        scale = jnp.float32(1 / 448)
        run = jax.vjp(lambda x: self.run(x, *w[:2], x_scale=scale), x)[1]
        # 464 / 448 still rounds to the largest number.
        inside = np.abs(np.asarray(x)) * 448 <= 464
        assert 0 < inside.mean() < 1
        dense = dense_of(*w)
        expected = np.where(inside, np.asarray(cotangent @ dense), 0)
        np.testing.assert_allclose(run(cotangent)[0], expected, rtol=1e-5, atol=1e-5)

"""`quantized_conv`: every implementation conforms; errors; models that run on it."""

import itertools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import dense_of, normal, stored, weight

from jcompress.execution import How, compressed, inspect
from jcompress.formats import Int
from jcompress.kernels import Implementation, Nonlinearity, _native
from jcompress.kernels.quantized_conv import quantized_conv
from jcompress.kernels.quantized_conv.cpu import DIRECT
from jcompress.quantization import (
    Activation,
    PerChannel,
    PerGroup,
    PerRow,
    PerTensor,
    Quantize,
    Weights,
    fake_quant,
    quantize,
)
from jcompress.sites import find_sites
from jcompress.tensors.ranges import range_of, scale_and_zero
from jcompress.tensors.rounding import quantize_values

pytestmark = pytest.mark.once

# images, spatial sizes, channels, outputs, and the options
CASES: dict[str, Any] = {
    "plain": (2, (7, 6), 3, 5, {"kernel": (3, 3), "padding": ((1, 1), (1, 1))}),
    "strided": (1, (9, 8), 4, 6, {"kernel": (3, 2), "strides": (2, 3),
                                  "padding": ((0, 1), (2, 0))}),
    "dilated": (2, (11, 9), 2, 3, {"kernel": (3, 3), "strides": (1, 2),
                                   "padding": ((2, 2), (1, 1)), "dilation": (2, 3)}),
    "cut": (2, (8, 9), 3, 4, {"kernel": (2, 3), "padding": ((-1, 2), (1, -2))}),
    "cut_and_more": (1, (5, 5), 2, 1, {"kernel": (2, 2),
                                       "padding": ((6, -4), (-2, 3))}),
    "sequence": (3, (13,), 5, 7, {"kernel": (4,), "strides": (2,),
                                  "padding": ((3, 0),)}),
    "volume": (2, (4, 5, 3), 2, 3, {"kernel": (2, 3, 2), "strides": (1, 2, 1),
                                    "padding": ((1, 0), (1, 1), (0, 1)),
                                    "dilation": (1, 1, 2)}),
    "wide": (1, (3, 3), 40, 9, {"kernel": (3, 3), "padding": ((1, 1), (1, 1))}),
    "point": (2, (5, 4), 6, 3, {"kernel": (1, 1), "strides": (2, 1),
                                "padding": ((1, 0), (0, 0))}),
    "large": (3, (22, 21), 1, 33, {"kernel": (5, 5)}),
    "nothing": (0, (4, 4), 2, 3, {"kernel": (3, 3)}),
}  # fmt: skip
# images, side, channels, outputs, groups, and the options
GROUPED: dict[str, Any] = {
    "depthwise": (2, 9, 70, 70, 70, {"kernel": (3, 3), "strides": (2, 2),
                                     "padding": ((0, 1), (1, 1))}),
    "pairs": (1, 7, 75, 75, 75, {"kernel": (3, 3), "padding": ((1, 1), (0, 1))}),
    "many_pairs": (9, 4, 20, 20, 20, {"kernel": (3, 3), "padding": ((1, 1), (1, 1))}),
    "wide_window": (1, 8, 6, 6, 6, {"kernel": (5, 5), "padding": ((2, 2), (2, 2))}),
    "small_window": (1, 6, 8, 8, 8, {"kernel": (1, 3), "dilation": (1, 2)}),
    "lines": (1, 32, 256, 256, 256, {"kernel": (3, 3), "padding": ((1, 1), (1, 1))}),
    "strided_lines": (2, 65, 18, 18, 18, {"kernel": (3, 3), "strides": (2, 1),
                                          "padding": ((3, -2), (-1, 2)),
                                          "dilation": (2, 1)}),
    "multiplied": (2, 6, 6, 12, 6, {"kernel": (3, 3)}),
    "groups": (5, 8, 24, 40, 4, {"kernel": (3, 3), "padding": ((1, 1), (1, 1))}),
}  # fmt: skip
ACTIVATIONS = (Nonlinearity.RELU, Nonlinearity.RELU6, Nonlinearity.SILU)
_conv = jax.jit(
    quantized_conv,
    static_argnames=(
        "bits", "kernel", "strides", "padding", "dilation", "groups", "x_bits",
        "activation", "y_bits", "implementation",
    ),
)  # fmt: skip


def patches(x: Any, options: Any) -> np.ndarray[Any, Any]:
    """The patches [B, *positions, K] of images as float64, by plain loops."""
    x = np.asarray(x).astype(np.float64)
    kernel = options["kernel"]
    ones = (1,) * len(kernel)
    padding = options.get("padding", ((0, 0),) * len(kernel))
    strides, dilation = options.get("strides", ones), options.get("dilation", ones)
    grown = [(0, 0), *((max(a, 0), max(b, 0)) for a, b in padding), (0, 0)]
    x = np.pad(x, grown)
    for axis, (low, high) in enumerate(padding, 1):
        kept = range(max(-low, 0), x.shape[axis] - max(-high, 0))
        x = np.take(x, kept, axis)
    out = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(x.shape[1:-1], kernel, strides, dilation, strict=True)
    ]
    every = np.zeros((x.shape[0], *out, int(np.prod(kernel)) * x.shape[-1]))
    for at in itertools.product(*map(range, out)):
        window = tuple(
            slice(a * s, a * s + d * (k - 1) + 1, d)
            for a, k, s, d in zip(at, kernel, strides, dilation, strict=True)
        )
        patch = x[(slice(None), *window)]
        every[(slice(None), *at)] = patch.reshape(x.shape[0], every.shape[-1])
    return every


def _refuses_groups(x_bits: int | None, symmetric: bool) -> bool:
    return x_bits is None or not symmetric or _native.instructions() not in DIRECT


def case(name: str, spec: Weights, dtype: Any = jnp.float32) -> Any:
    """Images, the integers of a weight with scales and zeros, and the options."""
    images, sizes, channels, outputs, options = CASES[name]
    x = normal((images, *sizes, channels), dtype) + jnp.asarray(0.5, dtype)
    inputs = int(np.prod(options["kernel"])) * channels
    return x, weight(outputs, inputs, spec), options


def rounded_case(name: str) -> tuple[jax.Array, jax.Array, Any, dict[str, Any]]:
    """Images as floats and rounded by one range, a kernel of 8 bits and arguments."""
    groups = 1
    if name in GROUPED:
        images, side, groups, _, _, options = GROUPED[name]
        x = normal((images, side, side + 1, groups))
        w = weight(groups, 9, Weights())
    else:
        x, w, options = case(name, Weights())
    scale, zero = jnp.float32(0.02), jnp.float32(-20)
    q = quantize_values(x, scale, zero, Int(8, symmetric=False)).astype(jnp.int8)
    given = {"bits": 8, "groups": groups, "x_bits": 8, **options}
    return x, q, w, given | {"x_scale": scale, "x_zero": zero}


class QuantizedConv:
    """Conformance of an implementation of `quantized_conv`."""

    implementation: ClassVar[Implementation]
    dtypes: ClassVar[tuple[Any, ...]] = (jnp.float32, jnp.bfloat16)
    exact: ClassVar[bool] = True

    def run(self, x: jax.Array, *weight: Any, **given: Any) -> jax.Array:
        return _conv(x, *weight, implementation=self.implementation, **given)

    def check(self, x: Any, weight: Any, options: Any, out: Any) -> None:
        """Compare float activations with a convolution in float64."""
        dense = dense_of(*weight).astype(np.float64)
        wide = np.asarray(x).astype(np.float64)
        axes = tuple(range(1, x.ndim))
        top = np.abs(wide).max(axes, initial=0, keepdims=True)
        size = top * np.abs(dense).sum(1)
        assert out.dtype == x.dtype
        expected = patches(x, options) @ dense.T
        assert out.shape == expected.shape
        error = np.abs(np.asarray(out).astype(np.float64) - expected)
        tolerance = 1e-6 if x.dtype == jnp.float32 else 2**-8
        assert (error <= tolerance * size).all(), error.max()

    def check_quantized(
        self, x: Any, scale: Any, zero: Any, x_bits: int, weight: Any, options: Any,
        out: Any,
    ) -> None:  # fmt: skip
        """Compare with exact sums of integers; scale and zero are [B]."""
        images = (-1, *(1,) * (x.ndim - 1))
        number = np.asarray(scale).reshape(images)
        offset = None if zero is None else zero.reshape(images)
        q = quantize_values(x, number, offset, Int(x_bits, symmetric=zero is None))
        left = np.asarray(q).astype(np.int64)
        left = left - (0 if zero is None else np.asarray(offset).astype(np.int64))
        values, scales, zeros = (
            None if part is None else np.asarray(part) for part in weight
        )
        right = values.astype(np.int64) - (0 if zeros is None else zeros)
        sums = patches(left, options) @ right.T.astype(np.float64)
        expected = sums.astype(np.float32) * number * scales[:, 0]
        assert out.dtype == x.dtype
        assert out.shape == expected.shape
        rtol = 2**-8 if x.dtype == jnp.bfloat16 else 1e-6
        rounded = 0.0 if self.exact else 1e-6 * np.abs(expected).max(initial=0)
        got = np.asarray(out).astype(np.float32)
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=rounded)

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("bits", [4, 8])
    def test_float_activations(self, name: str, bits: int) -> None:
        kind = PerTensor() if name == "strided" else PerChannel()
        spec = Weights(format=Int(bits, symmetric=bits == 8), granularity=kind)
        for dtype in self.dtypes if name in ("plain", "volume") else (jnp.float32,):
            x, w, options = case(name, spec, dtype)
            out = self.run(x, stored(w[0], bits), *w[1:], bits=bits, **options)
            self.check(x, w, options, out)

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize(
        ("symmetric", "x_bits"), [(True, 8), (False, 8), (False, 5)]
    )
    def test_quantized_activations(
        self, name: str, symmetric: bool, x_bits: int
    ) -> None:
        spec = Weights(format=Int(8 if x_bits == 8 else 3, symmetric=symmetric))
        for dtype in self.dtypes if name in ("plain", "volume") else (jnp.float32,):
            x, w, options = case(name, spec, dtype)
            span = range_of(x, tuple(range(1, x.ndim)))
            scale, zero = scale_and_zero(span, Int(x_bits, symmetric=symmetric))
            scale = scale.reshape(-1) * np.float32(0.75)  # so that some are clipped
            zero = None if zero is None else zero.reshape(-1)
            given = {"x_scale": scale, "x_zero": zero, "x_bits": x_bits, **options}
            out = self.run(
                x,
                stored(w[0], spec.format.bits),
                *w[1:],
                bits=spec.format.bits,
                **given,
            )
            self.check_quantized(x, scale, zero, x_bits, w, options, out)

    def test_a_range_of_its_own_for_each_image(self) -> None:
        x, w, options = case("plain", Weights())
        x = x * jnp.asarray([1.0, 1e-3])[:, None, None, None]
        out = self.run(x, *w, bits=8, x_bits=8, **options)
        scale, _ = scale_and_zero(range_of(x, (1, 2, 3)), Int(8))
        self.check_quantized(x, scale.reshape(-1), None, 8, w, options, out)
        self.check(x, w, options, self.run(x, *w, bits=8, **options))

    def test_sums_of_extremes_do_not_overflow(self) -> None:
        x = jnp.full((1, 4, 4, 2500), 1.0)
        values = jnp.full((2, 9 * 2500), -128, jnp.int8)
        zeros = jnp.full((2, 1), 127, jnp.int8)
        given = {"x_scale": jnp.float32(1 / 255), "x_zero": jnp.float32(-128)}
        out = self.run(
            x, values, jnp.ones((2, 1)), zeros, bits=8, x_bits=8, kernel=(3, 3), **given
        )
        rtol = 1e-6 if self.exact else 1e-4
        np.testing.assert_allclose(out, -255.0 * 9 * 2500, rtol=rtol)

    @pytest.mark.parametrize("name", ["strided", "cut", "volume"])
    def test_gradient(self, name: str) -> None:
        x, w, options = case(name, Weights(format=Int(4, symmetric=False)))
        dense = dense_of(*w)
        scale = jnp.float32(0.02)

        def run(x: jax.Array, **given: Any) -> jax.Array:
            return self.run(x, stored(w[0], 4), *w[1:], bits=4, **options, **given)

        out, pull = jax.vjp(run, x)
        cotangent = normal(out.shape, seed=3)
        # A convolution is linear: its gradient, on every unit image, is its result.
        units = jnp.eye(x[0].size, dtype=x.dtype).reshape(-1, *x.shape[1:])
        rows = patches(units, options) @ np.asarray(dense).T
        count = rows.shape[0]
        expected = np.einsum(
            "up,bp->bu", rows.reshape(count, -1), cotangent.reshape(x.shape[0], -1)
        ).reshape(x.shape)
        np.testing.assert_allclose(pull(cotangent)[0], expected, rtol=1e-4, atol=1e-5)
        _, pull = jax.vjp(lambda x: run(x, x_bits=8, x_scale=scale), x)
        inside = np.abs(np.rint(np.asarray(x) / 0.02)) <= 127
        assert 0 < inside.mean() < 1 or name == "cut"
        np.testing.assert_allclose(
            pull(cotangent)[0], np.where(inside, expected, 0), rtol=1e-4, atol=1e-5
        )

    @pytest.mark.parametrize("x_bits", [None, 8])
    def test_vmap(self, x_bits: int | None) -> None:
        """Over images, over weights, and over both."""
        x, _, options = case("plain", Weights())
        ws = [
            weight(5, 27, Weights(format=Int(8, symmetric=False)), seed=seed)
            for seed in range(3)
        ]
        stack = jax.tree.map(lambda *parts: jnp.stack(parts), *ws)
        xs = jnp.stack([x, x + np.float32(1), x * np.float32(2)])

        def run(x: jax.Array, *w: Any) -> jax.Array:
            return self.run(x, *w, bits=8, x_bits=x_bits, **options)

        both = jax.vmap(run)(xs, *stack)
        by_image = jax.vmap(run, (0, None, None, None))(xs, *ws[1])
        by_weight = jax.vmap(run, (None, 0, 0, 0))(x, *stack)
        for i in range(3):
            for got, one in (
                (both[i], run(xs[i], *ws[i])),
                (by_image[i], run(xs[i], *ws[1])),
                (by_weight[i], run(x, *ws[i])),
            ):
                np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("name", GROUPED)
    @pytest.mark.parametrize("x_bits", [None, 8])
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_groups(self, name: str, x_bits: int | None, symmetric: bool) -> None:
        """Against a dense kernel, zero where a group does not see."""
        images, side, channels, outputs, groups, options = GROUPED[name]
        x = normal((images, side, side + 1, channels))
        places = int(np.prod(options["kernel"]))
        inputs, each = places * channels // groups, outputs // groups
        w = weight(outputs, inputs, Weights(format=Int(8, symmetric=symmetric)))
        given: dict[str, Any] = {"bits": 8, **options}
        if x_bits is not None:
            zero = None if symmetric else jnp.float32(-9)
            given |= {"x_bits": 8, "x_scale": jnp.float32(0.02), "x_zero": zero}
        if self.implementation is Implementation.CPU and _refuses_groups(
            x_bits, symmetric
        ):
            with pytest.raises(NotImplementedError, match="takes groups only of"):
                self.run(x, *w, groups=groups, **given)
            return
        out = self.run(x, *w, groups=groups, **given)
        for group in range(groups):
            seen = slice(group * channels // groups, (group + 1) * channels // groups)
            mine = slice(group * each, (group + 1) * each)
            part = tuple(None if a is None else a[mine] for a in w)
            alone = _conv(
                x[..., seen], *part, implementation=Implementation.REFERENCE, **given
            )
            close(out[..., mine], alone, 1e-6)

    @pytest.mark.parametrize("name", ["plain", "large", "wide", "depthwise"])
    @pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
    @pytest.mark.parametrize("y_bits", [None, 8, 5])
    def test_what_follows(
        self, name: str, activation: Nonlinearity | None, y_bits: int | None
    ) -> None:
        x, q, w, given = rounded_case(name)
        scale = given["x_scale"]
        plain = self.run(x, *w, **given)
        more = {
            "bias": normal(plain.shape[-1:], seed=1),
            "addend": normal(plain.shape, seed=2),
            "residual": normal(plain.shape, seed=3),
        }
        wanted = plain + jnp.broadcast_to(more["bias"], plain.shape) + more["addend"]
        wanted = activation(wanted) if activation else wanted
        wanted = wanted + more["residual"]
        if y_bits is not None:
            y_zero = None if y_bits == 5 else jnp.float32(7)
            more |= {"y_bits": y_bits, "y_scale": scale * 4, "y_zero": y_zero}
            format = Int(y_bits, symmetric=y_zero is None)
            wanted = quantize_values(wanted, scale * 4, y_zero, format)
        floats = self.run(x, *w, activation=activation, **more, **given)
        integers = self.run(q, *w, activation=activation, **more, **given)
        if y_bits is None:
            close(floats, wanted, 2e-6)
            close(integers, wanted, 2e-6)
            return
        for out in (floats, integers):
            assert out.dtype == jnp.int8
            off = np.abs(np.asarray(out, np.int32) - np.asarray(wanted, np.int32))
            # Some lie between two integers to within the rounding of their sums.
            assert off.max() <= 1
            assert (off > 0).mean() < 0.01

    @pytest.mark.parametrize(
        "name", ["plain", "large", "wide", "depthwise", "pairs", "many_pairs", "lines"]
    )
    @pytest.mark.parametrize("activation", [None, *ACTIVATIONS[:2]])
    @pytest.mark.parametrize("y_bits", [8, 5])
    @pytest.mark.parametrize("adds", [False, True])
    def test_rounded_at_once(
        self, name: str, activation: Nonlinearity | None, y_bits: int, adds: bool
    ) -> None:
        """Integers of a linear function of the sums, clipped; too large ones, too."""
        _, q, w, given = rounded_case(name)
        plain = self.run(q, *w, **given)
        more: dict[str, Any] = {"bias": normal(plain.shape[-1:], seed=1)}
        wanted = plain + jnp.broadcast_to(more["bias"], plain.shape)
        if adds:
            integers = np.random.default_rng(4).integers(-128, 128, plain.shape)
            more |= {
                "addend": jnp.asarray(integers.astype(np.int8)),
                "addend_scale": jnp.float32(0.03),
                "addend_zero": jnp.float32(5),
            }
            wanted = wanted + (more["addend"].astype(jnp.float32) - 5) * 0.03
        wanted = activation(wanted) if activation else wanted
        y_zero = None if y_bits == 5 else jnp.float32(-9)
        format = Int(y_bits, symmetric=y_zero is None)
        for y_scale in (jnp.float32(0.3), jnp.float32(1e-9)):
            more |= {"y_bits": y_bits, "y_scale": y_scale, "y_zero": y_zero}
            out = self.run(q, *w, activation=activation, **more, **given)
            ends = np.asarray(quantize_values(wanted, y_scale, y_zero, format))
            assert out.dtype == jnp.int8
            off = np.abs(np.asarray(out, np.int32) - ends.astype(np.int32))
            if y_scale > 1e-3:
                # Some lie between two integers to within the rounding of their sums.
                assert off.max() <= 1
                assert np.unique(ends).size > 1
            assert (off > 0).mean() < 0.01

    def test_gradient_through_what_follows(self) -> None:
        x, w, options = case("plain", Weights())

        def run(x: jax.Array, **given: Any) -> jax.Array:
            return self.run(x, *w, bits=8, **options, **given)

        shape = run(x).shape
        bias, addend, residual = (
            normal(size, seed=seed)
            for seed, size in enumerate((shape[-1:], shape, shape))
        )

        wide = jnp.broadcast_to(bias, shape)

        def whole(x: jax.Array, addend: jax.Array, residual: jax.Array) -> jax.Array:
            return run(x, bias=bias, addend=addend, residual=residual,
                       activation=Nonlinearity.SILU)  # fmt: skip

        def apart(x: jax.Array, addend: jax.Array, residual: jax.Array) -> jax.Array:
            return jax.nn.silu(run(x) + wide + addend) + residual

        out, pull = jax.vjp(whole, x, addend, residual)
        wanted, other = jax.vjp(apart, x, addend, residual)
        close(out, wanted, 2e-6)
        for got, true in zip(pull(out), other(out), strict=True):
            close(got, true)

    def test_a_number_that_is_not_finite_spoils_its_image_only(self) -> None:
        x, w, options = case("plain", Weights())
        spoiled = x.at[1, 2, 2, 0].set(jnp.nan)
        out = self.run(spoiled, *w, bits=8, **options)
        assert not bool(jnp.isfinite(out[1]).all())
        self.check(x[:1], w, options, out[:1])


class TestReference(QuantizedConv):
    implementation = Implementation.REFERENCE


class TestXla(QuantizedConv):
    implementation = Implementation.XLA
    exact = False


@pytest.mark.skipif(bool(_native.missing()), reason=_native.missing())
class TestCpu(QuantizedConv):
    implementation = Implementation.CPU


X, V, S, Z = (
    jnp.ones((2, 5, 5, 3)),
    jnp.ones((4, 27), jnp.int8),
    jnp.ones((4, 1)),
    jnp.ones((4, 1), jnp.int8),
)


@pytest.mark.parametrize(
    ("args", "given", "message"),
    [
        ((X[0, 0], V, S), {}, r"one to three spatial axes, not float32 \[5, 3\]"),
        ((X.astype(jnp.int8), V, S), {}, "x is floats .* not int8"),
        ((X, V, S), {"kernel": (3,)}, r"kernel has 2 entries, not \(3,\)"),
        ((X, V, S), {"strides": (0, 1)}, r"strides is positive, not \(0, 1\)"),
        ((X, V, S), {"padding": ((-2, -1), (0, 0))}, r"no patch of \(3, 3\) fits"),
        ((X, V, S), {"bits": 9}, "bits is from 2 to 8, not 9"),
        ((X, V, S), {"bits": 4}, r"of 4 bits, values is uint8 \[N, 14\], not int8"),
        ((X, V, jnp.ones((4, 3))), {}, r"scales is float32 \[4 or 1, 1\], .* groups"),
        ((X, V, S, S), {}, "zeros is int8 of the shape of scales"),
        ((X, V, S), {"x_bits": 9}, "x_bits is None or from 2 to 8, not 9"),
        ((X, V, S), {"x_zero": jnp.ones(())}, "x_zero is given without x_scale"),
        ((X, V, S), {"x_scale": jnp.ones(())}, "x_scale is given without x_bits"),
        ((X, V, S), {"x_bits": 8, "x_scale": jnp.ones((2, 1))}, r"scalar or \[2\]"),
        ((X, V, S), {"x_bits": 8, "x_scale": jnp.ones(2), "x_zero": jnp.ones(())},
         r"x_zero is float32 of the shape of x_scale \[2\]"),
    ],
)  # fmt: skip
def test_errors(args: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantized_conv(*args, **{"bits": 8, "kernel": (3, 3), **given})


class Small(nn.Module):
    """Convolutions of several kinds, of which the second suits integers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.silu(nn.Conv(32, (3, 3), name="stem")(x))
        x = nn.silu(nn.Conv(64, (3, 3), name="wide")(x))
        x = nn.silu(nn.Conv(64, (3, 3), 2, feature_group_count=64, name="depth")(x))
        x = nn.silu(nn.Conv(48, (1, 1), name="point")(x))
        x = nn.silu(nn.Conv(8, (2, 3), (1, 2), "VALID", name="last")(x))
        return nn.Dense(5, name="head")(x.reshape(x.shape[0], -1))


def close(got: Any, wanted: Any, tolerance: float = 2e-5) -> None:
    size = max(float(np.abs(np.asarray(wanted)).max()), 1.0)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize(
    ("weights", "activation"),
    [
        (Weights(), None),
        (Weights(format=Int(4, symmetric=False)), Activation()),
        (Weights(granularity=PerTensor()),
         Activation(granularity=PerRow(), format=Int(8))),
        (Weights(format=Int(3)), Activation(granularity=PerRow())),
    ],
)  # fmt: skip
def test_a_small_model(weights: Weights, activation: Activation | None) -> None:
    model, x = Small(), normal((3, 9, 9, 2))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: 0.3 * normal(leaf.shape), shapes)
    rules = [("**/kernel", Quantize(weights=weights, activation=activation))]
    small = quantize(params, rules, sites=find_sites(model.apply, params, x))
    entries = {e.path.split("/")[1]: e for e in inspect(model.apply, small, x)}
    if activation is None:
        assert {entry.how for entry in entries.values()} == {How.DENSE}
    elif _native.instructions() in DIRECT and weights.format.symmetric:
        assert {entry.how for entry in entries.values()} == {How.INTEGER}
    else:
        assert entries.pop("depth").how is How.DENSE
        vectors = _native.instructions() not in (None, "generic", "avx2")
        assert entries.pop("wide").how is (How.INTEGER if vectors else How.DENSE)
    assert all("in floats" in e.why for e in entries.values() if e.how is How.DENSE)
    run = jax.jit(compressed(model.apply))
    fake = jax.jit(fake_quant(model.apply, rules))
    # A sum in another order may round an activation of the next layer to its neighbour:
    # one of the inputs of each output moves by a 255th of their range.
    close(run(small, x), fake(params, x), 2e-5 if activation is None else 5e-3)


LAYOUTS = {
    "NHWC": (("NHWC", "HWIO", "NHWC"), (2, 6, 5, 32), (3, 3, 32, 64)),
    "NCHW": (("NCHW", "OIHW", "NCHW"), (2, 32, 6, 5), (64, 32, 3, 3)),
    "mixed": (("CWHN", "IWOH", "HNWC"), (32, 6, 5, 2), (32, 3, 64, 3)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bits", [4, 8])
def test_layouts(layout: str, bits: int) -> None:
    numbers, data, kernel = LAYOUTS[layout]

    def model(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, params["w"], (2, 1), "SAME", dimension_numbers=numbers
        )

    params, x = {"w": normal(kernel)}, normal(data)
    rules = [
        ("w", Quantize(weights=Weights(format=Int(bits)), activation=Activation()))
    ]
    small = quantize(params, rules, sites=find_sites(model, params, x))
    (entry,) = inspect(model, small, x)
    # Which of the two is faster depends on the processor; a kernel takes both.
    assert entry.how is How.INTEGER or "in floats" in entry.why
    close(
        jax.jit(compressed(model))(small, x),
        jax.jit(fake_quant(model, rules))(params, x),
    )


def test_layers_of_a_scan() -> None:
    def model(params: Any, x: jax.Array) -> jax.Array:
        def step(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            y = jax.lax.conv_general_dilated(
                x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
            return jnp.tanh(y), None

        return jax.lax.scan(step, x, params["w"])[0]

    params, x = {"w": normal((3, 3, 8, 8))}, normal((2, 7, 8))
    rules = [("w", Quantize())]
    small = quantize(params, rules, sites=find_sites(model, params, x))
    (entry,) = inspect(model, small, x)
    assert "in floats" in entry.why
    run, fake = jax.jit(compressed(model)), jax.jit(fake_quant(model, rules))
    close(run(small, x), fake(params, x))
    got = jax.jit(jax.grad(lambda x: jnp.sum(run(small, x) ** 2)))(x)
    close(got, jax.jit(jax.grad(lambda x: jnp.sum(fake(params, x) ** 2)))(x))


@pytest.mark.parametrize(
    ("kernel", "weights", "options", "why"),
    [
        ((3, 8, 8), Weights(granularity=PerGroup(8)), {}, "several groups of scales"),
    ],
)
def test_what_is_made_dense(
    kernel: Any, weights: Weights, options: Any, why: str
) -> None:
    def model(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, params["w"], (1,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC"),
            **options,
        )  # fmt: skip

    params, x = {"w": normal(kernel)}, normal((2, 7, 8))
    rules = [("w", Quantize(weights=weights, activation=Activation()))]
    small = quantize(params, rules, sites=find_sites(model, params, x))
    (entry,) = inspect(model, small, x)
    assert entry.how is How.DENSE
    assert why in entry.why
    close(
        jax.jit(compressed(model))(small, x),
        jax.jit(fake_quant(model, rules))(params, x),
    )

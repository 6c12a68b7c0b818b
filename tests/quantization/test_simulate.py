"""`fake_quant`, `calibrate` and `init_ranges` against a NumPy oracle on models."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import (
    Activation,
    Dynamic,
    MovingAverage,
    PerChannel,
    PerGroup,
    PerRow,
    PerTensor,
    Quantize,
    Weights,
    calibrate,
    fake_quant,
    init_ranges,
    quantize,
)
from jcompress.sites import Operation, find_sites
from jcompress.tensors.ranges import Range

pytestmark = pytest.mark.bits

rng = np.random.default_rng(0)
W = jnp.asarray(rng.normal(size=(6, 4)).astype(np.float32))
X = jnp.asarray(rng.normal(size=(5, 6)).astype(np.float32))


def layer(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"] + params["b"][None]


PARAMS = {"w": W, "b": jnp.arange(4.0)}


def numpy_fake(
    x: Any, axes: Any, bits: int, symmetric: bool, span: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rounded values and where they were not clipped, in float64 but for the scale."""
    x = np.asarray(x, np.float64)
    low, high = span or (x.min(axes, keepdims=True), x.max(axes, keepdims=True))
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = np.maximum(abs(low), abs(high)) / top
        q = np.round(x / scale)
        return np.clip(q, -top, top) * scale, abs(q) <= top
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    bottom, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = (high - low) / (top - bottom)
    zero = np.clip(np.round(bottom - low / scale), bottom, top)
    q = np.round(x / scale) + zero
    return (np.clip(q, bottom, top) - zero) * scale, (q >= bottom) & (q <= top)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(), PerGroup(3)])
def test_weights_and_gradients(bits: int, symmetric: bool, granularity: Any) -> None:
    spec = Weights(format=Int(bits, symmetric=symmetric), granularity=granularity)
    quantized = fake_quant(layer, [("w", Quantize(weights=spec))])
    match granularity:
        case PerTensor():
            fake, _ = numpy_fake(W, (0, 1), bits, symmetric)
        case PerChannel():
            fake, _ = numpy_fake(W, (0,), bits, symmetric)
        case _:
            groups = np.asarray(W).reshape(2, 3, 4)
            fake, _ = numpy_fake(groups, (1,), bits, symmetric)
            fake = fake.reshape(6, 4)
    expected = np.asarray(X) @ fake + np.arange(4.0)
    np.testing.assert_allclose(
        jax.jit(quantized)(PARAMS, X), expected, rtol=2e-5, atol=2e-5
    )
    grads = jax.grad(lambda p: jnp.sum(jnp.square(quantized(p, X))))(PARAMS)
    # The weight itself sets the range, so nothing is clipped but for rounding.
    np.testing.assert_allclose(
        grads["w"], np.asarray(X).T @ (2 * expected), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("granularity", [PerTensor(), PerRow()])
@pytest.mark.parametrize("symmetric", [True, False])
def test_dynamic_activations(granularity: Any, symmetric: bool) -> None:
    spec = Activation(format=Int(4, symmetric=symmetric), granularity=granularity)
    rules = [("w", Quantize(weights=None, activation=spec))]
    axes = (1,) if isinstance(granularity, PerRow) else (0, 1)
    fake, kept = numpy_fake(X, axes, 4, symmetric)
    quantized = fake_quant(layer, rules)
    expected = fake @ np.asarray(W, np.float64) + np.arange(4.0)
    np.testing.assert_allclose(quantized(PARAMS, X), expected, rtol=1e-5, atol=1e-5)
    grad = jax.grad(lambda x: jnp.sum(jnp.square(quantized(PARAMS, x))))(X)
    through = (2 * expected) @ np.asarray(W, np.float64).T * kept
    np.testing.assert_allclose(grad, through, rtol=1e-4, atol=1e-4)


def test_fixed_ranges_clip_and_stop_the_gradient_where_they_do() -> None:
    spec = Activation(format=Int(8, symmetric=False), range=MovingAverage())
    rules = [("w", Quantize(weights=None, activation=spec))]
    ranges = {"w": (Range(jnp.float32(-0.5), jnp.float32(0.75)),)}
    quantized = fake_quant(layer, rules, ranges=ranges)
    fake, kept = numpy_fake(X, None, 8, False, span=(-0.5, 0.75))
    assert 0 < kept.sum() < kept.size
    expected = fake @ np.asarray(W, np.float64) + np.arange(4.0)
    np.testing.assert_allclose(quantized(PARAMS, X), expected, rtol=1e-5, atol=1e-5)
    grad = jax.grad(lambda x: jnp.sum(quantized(PARAMS, x)))(X)
    assert np.array_equal(np.asarray(grad) != 0, kept)


def test_moving_average_follows_its_formula() -> None:
    rules = [("w", Quantize(activation=Activation(range=MovingAverage(decay=0.75))))]
    observe = jax.jit(calibrate(layer, rules))
    ranges = init_ranges(layer, rules, PARAMS, X)
    assert np.isinf(ranges["w"][0].low)
    batches = [X, X * 3, X - 1]
    low = high = None
    for batch in batches:
        out, ranges = observe(PARAMS, ranges, batch)
        np.testing.assert_array_equal(out, jax.jit(layer)(PARAMS, batch))
        now = float(batch.min()), float(batch.max())
        low = now[0] if low is None else 0.75 * low + 0.25 * now[0]
        high = now[1] if high is None else 0.75 * high + 0.25 * now[1]
    np.testing.assert_allclose(ranges["w"][0].low, low, rtol=1e-6)
    np.testing.assert_allclose(ranges["w"][0].high, high, rtol=1e-6)


def test_calibrate_can_return_the_simulated_outputs() -> None:
    rules = [
        (
            "w",
            Quantize(
                activation=Activation(
                    format=Int(4, symmetric=False), range=MovingAverage()
                )
            ),
        )
    ]
    ranges = init_ranges(layer, rules, PARAMS, X)
    _, ranges = calibrate(layer, rules)(PARAMS, ranges, X)
    out, _ = calibrate(layer, rules, simulate=True)(PARAMS, ranges, X)
    np.testing.assert_array_equal(
        out, fake_quant(layer, rules, ranges=ranges)(PARAMS, X)
    )
    assert not np.array_equal(out, layer(PARAMS, X))


def test_ranges_of_scanned_layers_are_one_a_layer() -> None:
    weights = jnp.asarray(rng.normal(size=(3, 4, 4)).astype(np.float32))
    x = jnp.asarray(rng.normal(size=(2, 4)).astype(np.float32))

    def deep(params: Any, x: jax.Array) -> jax.Array:
        def step(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ w), None

        return jax.lax.scan(jax.checkpoint(step), x, params["w"])[0]

    rules = [("w", Quantize(activation=Activation(range=MovingAverage())))]
    ranges = init_ranges(deep, rules, {"w": weights}, x)
    assert ranges["w"][0].low.shape == (3,)
    _, ranges = jax.jit(calibrate(deep, rules))({"w": weights}, ranges, x)
    h = np.asarray(x)
    for layer_index in range(3):
        np.testing.assert_allclose(ranges["w"][0].low[layer_index], h.min(), rtol=1e-6)
        np.testing.assert_allclose(ranges["w"][0].high[layer_index], h.max(), rtol=1e-6)
        h = np.tanh(h @ np.asarray(weights[layer_index]))
    # One layer's range changes that layer only.
    narrow = {"w": (Range(ranges["w"][0].low * 0.1, ranges["w"][0].high * 0.1),)}
    assert not np.array_equal(
        fake_quant(deep, rules, ranges=narrow)({"w": weights}, x),
        fake_quant(deep, rules, ranges=ranges)({"w": weights}, x),
    )


def test_range_of_weights_shared_over_time_holds_all_steps() -> None:
    xs = jnp.asarray(rng.normal(size=(7, 2, 4)).astype(np.float32))
    w = W[:4]

    def recurrent(params: Any, xs: jax.Array) -> jax.Array:
        def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(h + x @ params["w"]), None

        return jax.lax.scan(step, jnp.zeros((2, 4)), xs)[0]

    rules = [("w", Quantize(activation=Activation(range=MovingAverage())))]
    ranges = init_ranges(recurrent, rules, {"w": w}, xs)
    _, ranges = calibrate(recurrent, rules)({"w": w}, ranges, xs)
    assert ranges["w"][0].low.shape == ()
    np.testing.assert_allclose(ranges["w"][0].low, xs.min(), rtol=1e-6)
    np.testing.assert_allclose(ranges["w"][0].high, xs.max(), rtol=1e-6)


@pytest.mark.parametrize("taken", [True, False])
def test_range_of_a_branch_not_taken_stays_as_it_was(taken: bool) -> None:
    def either(params: Any, x: jax.Array, choose: jax.Array) -> jax.Array:
        return jax.lax.cond(choose, lambda: x @ params["w"], lambda: x[:, :4])

    rules = [("w", Quantize(activation=Activation(range=MovingAverage(decay=0.5))))]
    choose = jnp.asarray(taken)
    ranges = init_ranges(either, rules, PARAMS, X, choose)
    _, after = jax.jit(calibrate(either, rules))(PARAMS, ranges, X, choose)
    assert bool(np.isfinite(after["w"][0].low)) is taken


def test_range_inside_a_while_loop() -> None:
    def loop(params: Any, x: jax.Array) -> jax.Array:
        def body(state: Any) -> Any:
            i, x = state
            return i + 1, jnp.tanh(x @ params["w"])

        start = (jnp.int32(0), x)
        return jax.lax.while_loop(lambda state: state[0] < 3, body, start)[1]

    w, x = W[:4], X[:, :4]
    rules = [("w", Quantize(activation=Activation(range=MovingAverage())))]
    ranges = init_ranges(loop, rules, {"w": w}, x)
    _, ranges = jax.jit(calibrate(loop, rules))({"w": w}, ranges, x)
    seen, h = [], np.asarray(x)
    for _ in range(3):
        seen.append(h)
        h = np.tanh(h @ np.asarray(w))
    np.testing.assert_allclose(
        ranges["w"][0].low, min(h.min() for h in seen), rtol=1e-6
    )


def test_range_under_shard_map_holds_every_shard() -> None:
    # The data are the same along one of the axes.
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("d", "m"), axis_types=axes)
    spec = jax.sharding.PartitionSpec

    def sharded(params: Any, x: jax.Array) -> jax.Array:
        return jax.shard_map(
            lambda w, x: x @ w,
            mesh=mesh,
            in_specs=(spec(), spec("d")),
            out_specs=spec("d"),
        )(params["w"], x)

    x = jnp.concatenate([X, X[:3] * 2])
    rules = [("w", Quantize(activation=Activation(range=MovingAverage())))]
    ranges = init_ranges(sharded, rules, PARAMS, x)
    _, ranges = jax.jit(calibrate(sharded, rules))(PARAMS, ranges, x)
    np.testing.assert_allclose(ranges["w"][0].high, x.max(), rtol=1e-6)
    out = jax.jit(fake_quant(sharded, rules, ranges=ranges))(PARAMS, x)
    assert out.shape == (8, 4)


def test_joined_weights_share_one_range() -> None:
    model = nn.RNN(nn.OptimizedLSTMCell(4))
    x = jnp.asarray(rng.normal(size=(2, 5, 3)).astype(np.float32))
    variables = model.init(jax.random.key(0), x)
    rules = [(..., Quantize(activation=Activation(range=MovingAverage())))]
    ranges = init_ranges(model.apply, rules, variables, x)
    _, ranges = jax.jit(calibrate(model.apply, rules))(variables, ranges, x)
    of_inputs = [ranges[name][0] for name in ranges if "/i" in name.split("cell")[1]]
    assert len(of_inputs) == 4
    assert {float(span.high) for span in of_inputs} == {float(x.max())}


def test_training_step_composes_with_jit_grad_vmap_and_donation() -> None:
    rules = [("w", Quantize(activation=Activation()))]
    quantized = fake_quant(layer, rules)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(quantized(params, x)))

    per_example = jax.vmap(jax.grad(loss), in_axes=(None, 0))(PARAMS, X[:, None])
    np.testing.assert_allclose(
        per_example["b"].sum(0),
        sum(jax.jit(jax.grad(loss))(PARAMS, x[None])["b"] for x in X),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("v", Quantize())], r"'v'\) matches no weight; the weights are w"),
        ([("b", Quantize())], "only leaves that no product or lookup uses: b"),
        ([(..., None)], "nothing to do"),
        ([("w", Weights())], "carries Quantize"),
        (
            [("w", Quantize(weights=Weights(granularity=PerGroup(4))))],
            "groups of 4 do not divide the 6 inputs of w",
        ),
        (
            [("w", Quantize(activation=Activation(range=MovingAverage())))],
            "w have stored ranges; pass",
        ),
    ],
)
def test_errors(rules: Any, message: str) -> None:
    with pytest.raises((MismatchError, TypeError), match=message):
        fake_quant(layer, rules)(PARAMS, X)


def test_errors_about_ranges() -> None:
    dynamic = [("w", Quantize(activation=Activation(range=Dynamic())))]
    with pytest.raises(MismatchError, match="no rule has an Activation"):
        init_ranges(layer, dynamic, PARAMS, X)
    averaged = [("w", Quantize(activation=Activation(range=MovingAverage())))]
    good = Range(jnp.float32(0), jnp.float32(1))
    for ranges, message in (
        ({}, "no entry for w"),
        ({"w": (good, good)}, "2 entries for w, which is in 1 products"),
        ({"w": (Range(jnp.zeros(3), jnp.ones(3)),)}, r"shape \[3\] and \[3\]"),
    ):
        with pytest.raises(MismatchError, match=message):
            fake_quant(layer, averaged, ranges=ranges)(PARAMS, X)


def test_error_for_an_activation_that_is_only_looked_up() -> None:
    def embed(params: Any, ids: jax.Array) -> jax.Array:
        return params["w"][ids]

    rules = [(Operation.LOOKUP, Quantize(weights=None, activation=Activation()))]
    with pytest.raises(MismatchError, match="w is only looked up"):
        fake_quant(embed, rules)({"w": W}, jnp.array([1, 2]))


def test_error_for_an_activation_behind_a_custom_gradient() -> None:
    @jax.custom_vjp
    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))

    def sealed(params: Any, x: jax.Array) -> jax.Array:
        return product(x, params["w"])

    with pytest.raises(MismatchError, match="custom gradient"):
        fake_quant(sealed, [(..., Quantize(activation=Activation()))])(PARAMS, X)
    out = fake_quant(sealed, [(..., Quantize(weights=Weights(format=Int(2))))])(
        PARAMS, X
    )
    assert not np.array_equal(out, sealed(PARAMS, X))


def test_error_for_joined_weights_with_different_activations() -> None:
    def joined(params: Any, x: jax.Array) -> jax.Array:
        return x @ jnp.concatenate([params["w"], params["v"]], axis=1)

    rules = [("w", Quantize(activation=Activation())), ("v", Quantize())]
    with pytest.raises(MismatchError, match="w and v are one matrix"):
        fake_quant(joined, rules)({"w": W, "v": W}, X)


@pytest.mark.parametrize("dtype", ["complex64", "int32"])
def test_data_that_is_no_floats_is_refused(dtype: str) -> None:
    def layer(params: Any, x: Any) -> Any:
        return jax.lax.dot(params["w"].astype(x.dtype), x)

    params, x = {"w": jnp.ones((3, 4))}, jnp.ones(4, dtype)
    rules = [("w", Quantize(activation=Activation()))]
    with pytest.raises(MismatchError, match=f"w meets {dtype} data.* without activ"):
        fake_quant(layer, rules)(params, x)
    small = quantize(params, rules, sites=find_sites(layer, params, x))
    with pytest.raises(MismatchError, match=f"w meets {dtype} data.* without activ"):
        compressed(layer)(small, x)

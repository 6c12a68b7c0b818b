"""Weights that are made from leaves: masks, norms, low rank, folded biases, ties."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo._case import Case, case, conv, data, dot, leaf


@case
def weight_standardisation() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        w = p["w"] - jnp.mean(p["w"], axis=(0, 1, 2), keepdims=True)
        w = w / jnp.sqrt(jnp.var(w, axis=(0, 1, 2), keepdims=True) + 1e-5)
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=dims
        )

    return Case(
        fn=fn,
        variables={"w": leaf(3, 3, 2, 5)},
        args=(data(4, 6, 6, 2),),
        weights={"w": [conv((0, 1, 2), (3,), 4 * 6 * 6 * 3 * 3 * 2 * 5, derived=True)]},
    )


@case
def fixed_mask() -> Case:
    mask = (np.arange(48).reshape(8, 6) % 3 > 0).astype(np.float32)
    return Case(
        fn=lambda p, x: x @ (p["w"] * mask),
        variables={"w": leaf(8, 6)},
        args=(data(4, 8),),
        weights={"w": [dot((0,), (1,), 4 * 8 * 6, derived=True)]},
    )


@case
def scaled_output() -> Case:
    return Case(
        fn=lambda p, x: (x @ p["w"]) * p["scale"][None] + p["shift"],
        variables={"w": leaf(8, 6), "scale": leaf(6), "shift": leaf()},
        args=(data(4, 8),),
        weights={"w": [dot((0,), (1,), 4 * 8 * 6)]},
        elementwise=("scale", "shift"),
    )


@case
def weight_norm() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.sum(jnp.square(p["v"]), axis=0, keepdims=True))
        return x @ (p["v"] / norm * p["g"][None])

    return Case(
        fn=fn,
        variables={"v": leaf(8, 6), "g": leaf(6)},
        args=(data(4, 8),),
        weights={"v": [dot((0,), (1,), 4 * 8 * 6, derived=True)]},
        loose=("g",),
        total_macs=4 * 8 * 6,
    )


@case
def low_rank_adapter() -> Case:
    """Each of the two products counts once, however many leaves are parts of it."""
    return Case(
        fn=lambda p, x: x @ (p["w"] + p["a"] @ p["b"]),
        variables={"w": leaf(8, 6), "a": leaf(8, 2), "b": leaf(2, 6)},
        args=(data(4, 8),),
        weights={"w": [dot((0,), (1,), 4 * 8 * 6, derived=True)]},
        loose=("a", "b"),
        total_macs=8 * 2 * 6 + 4 * 8 * 6,
    )


@case
def low_rank_factors() -> Case:
    return Case(
        fn=lambda p, x: x @ p["w"] + (x @ p["a"]) @ p["b"],
        variables={"w": leaf(8, 6), "a": leaf(8, 2), "b": leaf(2, 6)},
        args=(data(4, 8),),
        weights={
            "w": [dot((0,), (1,), 4 * 8 * 6)],
            "a": [dot((0,), (1,), 4 * 8 * 2)],
            "b": [dot((0,), (1,), 4 * 2 * 6)],
        },
    )


@case
def integers_and_scales() -> Case:
    """A hand-quantized layer: an integer leaf is a weight, changed by its scale."""
    values = jnp.asarray(np.arange(48).reshape(8, 6) % 15 - 7, jnp.int8)
    return Case(
        fn=lambda p, x: x @ (p["q"].astype(jnp.float32) * p["scale"]),
        variables={"q": values, "scale": leaf(1, 6)},
        args=(data(4, 8),),
        weights={"q": [dot((0,), (1,), 4 * 8 * 6, derived=True)]},
        loose=("scale",),
        total_macs=4 * 8 * 6,
    )


@case
def folded_bias() -> Case:
    """The bias is one more row of the weight; each has its share of the product."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        x = jnp.concatenate([x, jnp.ones((4, 1))], axis=1)
        return x @ jnp.concatenate([p["w"], p["b"][None]], axis=0)

    return Case(
        fn=fn,
        variables={"w": leaf(8, 6), "b": leaf(6)},
        args=(data(4, 8),),
        weights={
            "w": [dot((0,), (1,), 4 * 8 * 6)],
            "b": [dot((), (0,), 4 * 1 * 6)],
        },
    )


@case
def stacked_in_the_function() -> Case:
    """Separate leaves, stacked and then scanned over: each runs once."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        ws = jnp.stack([p["w0"], p["w1"]])
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

    return Case(
        fn=fn,
        variables={"w0": leaf(8, 8), "w1": leaf(8, 8) * 0.9},
        args=(data(4, 8),),
        loose=("w0", "w1"),
        total_macs=2 * 4 * 8 * 8,
    )


@case
def siamese() -> Case:
    def fn(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(jnp.tanh(x @ p["w"]) - jnp.tanh(y @ p["w"])), axis=1)

    return Case(
        fn=fn,
        variables={"w": leaf(8, 6)},
        args=(data(4, 8), data(4, 8, seed=3)),
        weights={"w": [dot((0,), (1,), 4 * 8 * 6)] * 2},
    )


@case
def tied_autoencoder() -> Case:
    return Case(
        fn=lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T,
        variables={"w": leaf(8, 6)},
        args=(data(4, 8),),
        weights={"w": [dot((0,), (1,), 4 * 8 * 6), dot((1,), (0,), 4 * 6 * 8)]},
    )


@case
def modulated_by_data() -> Case:
    """The weight meets data in a multiplication, before the product."""

    def fn(p: Any, x: jax.Array, style: jax.Array) -> jax.Array:
        w = p["w"][None] * style[:, :, None]
        return jnp.einsum("bk,bkn->bn", x, w)

    return Case(
        fn=fn,
        variables={"w": leaf(8, 6)},
        args=(data(4, 8), data(4, 8, seed=3)),
        elementwise=("w",),
    )


@case
def decayed_loss() -> Case:
    """A loss with weight decay: the leaf also reaches the result as a number."""

    def fn(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        loss = jnp.mean(jnp.square(x @ p["w"] - y))
        return loss + 1e-3 * jnp.sum(jnp.square(p["w"]))

    return Case(
        fn=fn,
        variables={"w": leaf(8, 6)},
        args=(data(4, 8), data(4, 6)),
        weights={"w": [dot((0,), (1,), 4 * 8 * 6)]},
    )


@case
def spectral_filter() -> Case:
    """A Fourier transform of the leaf: an operation that is not looked into."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jnp.real(jnp.fft.ifft(jnp.fft.fft(x) * jnp.fft.fft(p["w"])[None]))

    return Case(
        fn=fn,
        variables={"w": leaf(8)},
        args=(data(4, 8),),
        loose=("w",),
        mesh=False,
    )


@case
def sorted_leaf() -> Case:
    return Case(
        fn=lambda p, x: x * jnp.sort(p["w"])[None] + jnp.cumsum(p["v"])[None],
        variables={"w": leaf(8), "v": leaf(8)},
        args=(data(4, 8),),
        loose=("w", "v"),
    )


@case
def weight_scaled_by_einsum() -> Case:
    """The scale of a weight is an element-wise use, however it is written."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        scale = jnp.exp(p["scale"]) / (1.0 + jnp.square(p["scale"]))
        y = x @ jnp.einsum("sd,s->sd", p["w"], scale).T
        return jnp.einsum("bs,s->bs", y, p["gain"])

    return Case(
        fn=fn,
        variables={"w": leaf(6, 8), "scale": leaf(6), "gain": leaf(6)},
        args=(data(4, 8),),
        weights={"w": [dot((1,), (0,), 4 * 8 * 6, derived=True)]},
        elementwise=("scale", "gain"),
    )


@case
def weight_reached_by_two_ways() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        mask = np.eye(8, dtype=bool)
        y = x @ jnp.where(mask, jnp.exp(p["w"]), p["w"])
        return y @ (p["u"] + p["v"])

    return Case(
        fn=fn,
        variables={"w": leaf(8, 8), "u": leaf(8, 6), "v": leaf(8, 6)},
        args=(data(4, 8),),
        weights={
            "w": [dot((0,), (1,), 4 * 8 * 8, derived=True)],
            "u": [dot((0,), (1,), 4 * 8 * 6, derived=True)],
            "v": [dot((0,), (1,), 0, derived=True)],
        },
    )


@case
def complex_weight() -> Case:
    return Case(
        fn=lambda p, x: jnp.real(x.astype(p["c"].dtype) @ jnp.conj(p["c"])),
        variables={"c": jax.lax.complex(leaf(8, 5), leaf(8, 5))},
        args=(data(4, 8),),
        weights={"c": [dot((0,), (1,), 4 * 8 * 5, derived=True)]},
    )

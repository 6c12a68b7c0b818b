"""Values in a fused weight of queries, keys and values are rotated, and only these."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rescaling_models as models

from jcompress.errors import MismatchError
from jcompress.rescaling import rotate

WIDTH, HEADS = models.WIDTH, models.HEADS
SIZE = WIDTH // HEADS
TOKENS = models.tokens()


def turned(x: jax.Array) -> jax.Array:
    """Rotary positions: pairs of channels turn with the position."""
    first, last = jnp.split(x, 2, axis=-1)
    place = jnp.arange(x.shape[1], dtype=jnp.float32)[None, :, None, None]
    speed = jnp.exp2(-jnp.arange(SIZE // 2, dtype=jnp.float32))[None, None, None]
    c, s = jnp.cos(place * speed), jnp.sin(place * speed)
    return jnp.concatenate([first * c - last * s, last * c + first * s], -1)


def split_then_heads(p: Any, h: jax.Array) -> list[jax.Array]:
    every = jnp.split(h @ p["qkv"] + p["b"][None, None], 3, axis=-1)
    return [x.reshape(*h.shape[:2], HEADS, SIZE) for x in every]


def axes_of_their_own(p: Any, h: jax.Array) -> list[jax.Array]:
    fused = p["qkv"].reshape(WIDTH, 3, HEADS, SIZE)
    every = jnp.einsum("btd,dchk->btchk", h, fused)
    every = every + p["b"].reshape(1, 1, 3, HEADS, SIZE)
    return [every[:, :, n] for n in range(3)]


def within_each_head(p: Any, h: jax.Array) -> list[jax.Array]:
    y = h @ p["qkv"] + p["b"][None, None]
    y = y.reshape(*h.shape[:2], HEADS, 3 * SIZE)
    return list(jnp.split(y, 3, axis=-1))


Split = Callable[[Any, jax.Array], list[jax.Array]]
VALUES: dict[Split, np.ndarray[Any, Any]] = {
    split_then_heads: np.arange(3 * WIDTH) >= 2 * WIDTH,
    axes_of_their_own: np.arange(3 * WIDTH) >= 2 * WIDTH,
    within_each_head: np.arange(3 * WIDTH) % (3 * SIZE) >= 2 * SIZE,
}


def model_of(split: Split) -> Callable[..., jax.Array]:
    def block(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        h = models.rms_norm(x, p["norm"])
        q, k, v = split(p, h)
        scores = jnp.einsum("bqhk,bthk->bhqt", turned(q), turned(k)) / 3
        mixed = jnp.einsum("bhqt,bthk->bqhk", jax.nn.softmax(scores), v)
        return x + mixed.reshape(x.shape) @ p["o"], None

    def model(p: Any, tokens: jax.Array) -> jax.Array:
        x, _ = jax.lax.scan(block, p["embed"][tokens], p["layers"])
        return jnp.tanh(x) @ p["head"]

    return model


PARAMS = {
    "embed": models.normal(models.WORDS, WIDTH),
    "layers": {
        "qkv": models.normal(2, WIDTH, 3 * WIDTH, scale=0.3),
        "b": models.normal(2, 3 * WIDTH, scale=0.3),
        "o": models.normal(2, WIDTH, WIDTH, scale=0.3),
        "norm": 1 + models.normal(2, WIDTH, scale=0.2),
    },
    "head": models.normal(WIDTH, models.WORDS, scale=0.3),
}


@pytest.mark.parametrize("split", VALUES, ids=lambda split: split.__name__)
def test_only_values_and_outputs_turn_behind_rotary_positions(split: Split) -> None:
    model, values = model_of(split), VALUES[split]
    made = rotate(model, PARAMS, TOKENS, key=jax.random.key(0))
    (one,) = made.rotated
    assert one.size == SIZE
    assert set(one.axes) == {"layers/qkv:2", "layers/b:1", "layers/o:1"}
    assert set(one.partly) == {"layers/qkv:2", "layers/b:1"}
    assert "of layers/" in str(one)
    assert "a part" in str(one)
    old, new = PARAMS["layers"], made.params["layers"]
    for name in ("qkv", "b"):
        same, other = (np.asarray(tree[name]) for tree in (old, new))
        np.testing.assert_array_equal(same[..., ~values], other[..., ~values])
    before, after = (
        np.asarray(tree["qkv"], np.float64)[..., values].reshape(-1, SIZE)
        for tree in (old, new)
    )
    turn = np.linalg.lstsq(before, after, rcond=None)[0]
    np.testing.assert_allclose(turn @ turn.T, np.eye(SIZE), atol=1e-5)
    assert np.abs(turn - np.eye(SIZE)).max() > 0.1
    bias = np.asarray(old["b"])[..., values].reshape(-1, SIZE) @ turn
    found = np.asarray(new["b"])[..., values].reshape(-1, SIZE)
    np.testing.assert_allclose(found, bias, atol=1e-5)
    heads = np.asarray(old["o"]).reshape(2, HEADS, SIZE, WIDTH)
    outputs = np.einsum("ij,lhid->lhjd", turn, heads).reshape(2, WIDTH, WIDTH)
    np.testing.assert_allclose(new["o"], outputs, atol=1e-5)
    wanted, got = model(PARAMS, TOKENS), model(made.params, TOKENS)
    assert models.relative(got, wanted) < 1e-6


def test_what_happens_to_a_part_that_cannot_turn() -> None:
    def bent(p: Any, h: jax.Array) -> list[jax.Array]:
        q, k, v = split_then_heads(p, h)
        return [q, k, jax.nn.relu(v)]

    with pytest.raises(MismatchError, match=r"layers/qkv:2.* stay: `max`"):
        rotate(model_of(bent), PARAMS, TOKENS, key=jax.random.key(0))

    def mixed(p: Any, h: jax.Array) -> list[jax.Array]:
        q, k, v = split_then_heads(p, h)
        return [q, k, jnp.cumsum(v, axis=-1)]

    with pytest.raises(MismatchError, match="nothing was rotated"):
        rotate(model_of(mixed), PARAMS, TOKENS, key=jax.random.key(0))

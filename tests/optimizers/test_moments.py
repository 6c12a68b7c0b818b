"""The state of an optimizer in 8 bits: its numbers, its bytes, and what it trains."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

from jcompress import checkpoint
from jcompress.optimizers import Blocks, count_state_bytes, quantize_moments
from jcompress.optimizers.blocks import dynamic_numbers, from_blocks, to_blocks


def tree_numbers(signed: bool) -> list[float]:
    """The data type again, bit by bit."""
    found = []
    for code in range(256):
        bits = f"{code:08b}"
        sign, rest = (
            (-1.0 if bits[0] == "1" else 1.0, bits[1:]) if signed else (1, bits)
        )
        zeros = len(rest) - len(rest.lstrip("0"))
        fraction = rest[zeros + 1 :]
        if zeros == len(rest):  # the codes of 0 and -0 are those of 0 and 1
            found.append(1.0 if sign < 0 else 0.0)
        elif not signed and zeros == 7:
            found.append(1.0)  # the unsigned tree has one code more than decades
        else:
            part = (int(fraction or "0", 2) + 0.5) / 2 ** len(fraction)
            found.append(sign * (0.1 + 0.9 * part) * 10.0**-zeros)
    return sorted(found)


@pytest.mark.parametrize("signed", [True, False])
def test_the_data_type_is_the_dynamic_tree(signed: bool) -> None:
    numbers = dynamic_numbers(signed)
    assert len(set(numbers.tolist())) == 256
    np.testing.assert_allclose(numbers, tree_numbers(signed), rtol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_blocks_round_to_the_nearest_number(signed: bool) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(7, 50)) * 10 ** rng.uniform(-5, 0, size=(7, 50))).astype("f4")
    x[2] = 0
    x = x if signed else np.abs(x)
    table = dynamic_numbers(signed).astype(np.float64)
    size = 64
    flat = np.pad(x.ravel(), (0, 384 - 350)).reshape(6, size)
    want = np.empty_like(flat)
    for block, out in zip(flat, want, strict=True):
        top = np.abs(block).max()
        near = np.abs(block[:, None] / top - table).argmin(1)
        if not signed:
            near = np.where(block > 0, np.maximum(near, 1), near)
        out[:] = table[near] * top
    blocks = jax.jit(to_blocks, static_argnums=1)(jnp.asarray(x), size)
    assert blocks.codes.shape == x.shape
    assert blocks.codes.dtype == jnp.uint8
    assert (np.signbit(blocks.scales) == (not signed)).all()
    got = from_blocks(blocks, size)
    np.testing.assert_allclose(got, want.ravel()[:350].reshape(7, 50), rtol=1e-5)
    if not signed:
        np.testing.assert_array_equal(np.asarray(got) > 0, x > 0)


def network(params: Any, x: jax.Array) -> jax.Array:
    out: jax.Array = jax.nn.tanh(x @ params["up"]) @ params["down"]
    return out


def trained(optimizer: Any) -> tuple[list[float], Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "up": jax.random.normal(keys[0], (32, 128)) / 6,
        "down": jax.random.normal(keys[1], (128, 32)) / 11,
    }
    x = jax.random.normal(keys[2], (512, 32))
    target = jnp.sin(3 * x)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.mean(jnp.square(network(params, x) - target))

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    losses = []
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for _ in range(80):
            params, state, value = step(params, state)
            losses.append(float(value))
    return losses, state


def test_adam_in_8_bits_learns_as_well(tmp_path: Any) -> None:
    floats, dense = trained(optax.adam(3e-3))
    small, state = trained(quantize_moments(optax.adam(3e-3)))
    assert floats[-1] < 0.5 * floats[0]
    assert abs(small[-1] - floats[-1]) < 0.05 * floats[-1]
    # The moments were rounded: it is not the same training.
    assert small[50] != floats[50]
    count = count_state_bytes(state)
    assert count.dense == count_state_bytes(dense).stored
    arrays = 2 * (32 * 128 + 128 * 32)
    assert count.stored == arrays + 4 * arrays // 256 + 4
    assert "(0.254)" in str(count)

    checkpoint.save(tmp_path / "state", state)
    loaded = checkpoint.load(tmp_path / "state", like=state)
    again = serialization.from_state_dict(state, serialization.to_state_dict(state))
    for other in (loaded, again):
        assert jax.tree.structure(other) == jax.tree.structure(state)
        same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), other, state)
        assert all(jax.tree.leaves(same))


def test_small_and_integer_arrays_stay() -> None:
    params = {"large": jnp.ones(100, jnp.bfloat16), "small": jnp.ones(99)}
    state = quantize_moments(optax.sgd(0.1, momentum=0.9), least=100).init(params)
    (trace, _) = state.inner
    assert isinstance(trace.trace["large"], Blocks)
    assert trace.trace["large"].scales.dtype == jnp.bfloat16
    assert trace.trace["small"].dtype == jnp.float32
    with pytest.raises(ValueError, match="block is a positive int"):
        quantize_moments(optax.sgd(0.1), block=0)

"""Hashed leaves against the formula in Python, their fit, training, and errors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jcompress import checkpoint
from jcompress.errors import MismatchError
from jcompress.execution import How, compressed, inspect
from jcompress.quantization import Quantize, quantize
from jcompress.sharing.hashing import Hash, hash_weights
from jcompress.sites import find_sites
from jcompress.tensors.axes import Axes, to_matrix
from jcompress.tensors.hashed import Hashed

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)


def mix(x: int) -> int:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * factor % 2**32
    return x ^ (x >> 16)


def hash_of(number: int, seed: int) -> int:
    return mix(number ^ mix((seed + 0x9E3779B9) % 2**32))


def read(tensor: Hashed, number: int) -> tuple[int, int]:
    """The place and the sign of one position."""
    place = hash_of(number, tensor.seed) % tensor.values.shape[-1]
    other = hash_of(number, (tensor.seed + 0x9E3779B9) % 2**32)
    return place, -1 if tensor.signs and other >= 2**31 else 1


def model(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["up"]) @ params["down"].T


PARAMS = {
    "up": jnp.asarray(RNG.normal(size=(8, 12)), jnp.float32),
    "down": jnp.asarray(RNG.normal(size=(5, 12)), jnp.float32),
}
X = jnp.asarray(RNG.normal(size=(16, 8)), jnp.float32)
SITES = find_sites(model, PARAMS, X)


@pytest.mark.parametrize("signs", [False, True])
def test_values_are_means_and_entries_read_them(signs: bool) -> None:
    spec = Hash(entries=4, signs=signs, seed=3)
    small = hash_weights(PARAMS, [(..., spec)], sites=SITES)
    for name in ("up", "down"):
        tensor = small[name]
        matrix = np.asarray(to_matrix(PARAMS[name], tensor.axes)).ravel()
        dense = np.asarray(to_matrix(tensor.dense(), tensor.axes)).ravel()
        assert tensor.stored_bytes == matrix.size
        found = [read(tensor, number) for number in range(matrix.size)]
        for number, (place, sign) in enumerate(found):
            members = [s * matrix[i] for i, (p, s) in enumerate(found) if p == place]
            assert abs(dense[number] - sign * np.mean(members)) < 1e-5
    assert small["up"].seed != small["down"].seed


def test_the_hash_spreads() -> None:
    tensor = Hashed(
        values=jnp.arange(64, dtype=jnp.float32) + 1,
        seed=1,
        shape=(64, 100),
        dtype=jnp.float32,
        output_axes=(0,),
        input_axes=(1,),
    )
    dense = np.asarray(tensor.dense())
    counts = np.bincount(np.abs(dense).astype(int).ravel())[1:]
    # 6400 positions fall into 64 places, 100 in each but for chance (sd 10).
    assert len(counts) == 64
    assert counts.min() > 60
    assert counts.max() < 140
    assert abs(np.sign(dense).sum()) < 320
    # No two rows or columns read alike.
    assert len(np.unique(dense, axis=0)) == 64
    assert len(np.unique(dense, axis=1).T) == 100


def test_trains_as_a_leaf(tmp_path: Any) -> None:
    """The gradient of a value is the signed sum over its entries; optax trains it."""
    run = compressed(model)
    small = hash_weights(PARAMS, [("up", Hash(entries=4))], sites=SITES)
    target = model(PARAMS, X)

    def loss(tree: Any) -> jax.Array:
        return jnp.mean((run(tree, X) - target) ** 2)

    dense = {**small, "up": small["up"].dense()}
    plain = jax.grad(lambda p: jnp.mean((model(p, X) - target) ** 2))(dense)
    by_entry = np.asarray(to_matrix(plain["up"], small["up"].axes)).ravel()
    expected = np.zeros(24)
    for number, gradient in enumerate(by_entry):
        place, sign = read(small["up"], number)
        expected[place] += sign * gradient
    gradients = jax.grad(loss)(small)
    np.testing.assert_allclose(gradients["up"].values, expected, rtol=1e-3, atol=1e-5)
    optimizer = optax.sgd(1e-2)
    state = optimizer.init(small)
    before = loss(small)

    @jax.jit
    def step(tree: Any, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(tree), state, tree)
        return optax.apply_updates(tree, updates), state

    for _ in range(50):
        small, state = step(small, state)
    assert loss(small) < 0.5 * before
    (use,) = inspect(model, small, X)
    assert (use.path, use.how) == ("up", How.DENSE)
    checkpoint.save(tmp_path / "model", small)
    again = checkpoint.load(tmp_path / "model", small)
    np.testing.assert_array_equal(run(again, X), run(small, X))


def test_stacks_and_a_scan() -> None:
    def deep(params: Any, x: jax.Array) -> Any:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])[0]

    params = {"w": jnp.asarray(RNG.normal(size=(3, 8, 8)), jnp.bfloat16)}
    x = X.astype(jnp.bfloat16)
    sites = find_sites(deep, params, x)
    small = hash_weights(params, [("w", Hash(entries=4))], sites=sites)
    assert small["w"].values.shape == (3, 16)
    assert small["w"].dense().dtype == jnp.bfloat16
    dense = {"w": small["w"].dense()}
    np.testing.assert_array_equal(compressed(deep)(small, x), deep(dense, x))
    rules = [("w", Hash(entries=4))]
    convert = functools.partial(hash_weights, rules=rules, sites=sites)
    again = jax.jit(convert)(params)
    np.testing.assert_allclose(again["w"].values, small["w"].values, rtol=1e-5)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("up", Quantize())], r"rule 0 is Quantize.*carries Hash\("),
        ([("up", Hash(entries=1))],
         r"up \[8, 12\] would not become smaller: the values of a matrix take 384"),
        ([("bias", Hash(entries=2))], "matches no weight"),
    ],
)  # fmt: skip
def test_rules_that_cannot_apply(rules: Any, message: str) -> None:
    with pytest.raises((MismatchError, TypeError), match=message):
        hash_weights(PARAMS, rules, sites=SITES)


def test_what_does_not_fit() -> None:
    rules = [("up", Hash(entries=2))]
    with pytest.raises(ValueError, match=r"entries is 0\.5; at least 1"):
        Hash(entries=0.5)
    with pytest.raises(ValueError, match="seed is -1"):
        Hash(entries=2, seed=-1)
    with pytest.raises(
        ValueError, match=r"'up' is \[12, 8\] in the tree and \[8, 12\]"
    ):
        hash_weights({**PARAMS, "up": PARAMS["up"].T}, rules, sites=SITES)
    with pytest.raises(ValueError, match="'up', which is not in the tree: down"):
        hash_weights({"down": PARAMS["down"]}, rules, sites=SITES)
    packed = quantize(PARAMS, [("up", Quantize())], sites=SITES)
    with pytest.raises(MismatchError, match="'up' is already a QTensor"):
        hash_weights(packed, rules, sites=SITES)
    given: Any = {"shape": (2, 3), "dtype": jnp.float32}
    axes = Axes((), (0,), (1,))
    given |= {"output_axes": axes.output, "input_axes": axes.input}
    with pytest.raises(ValueError, match="values holds no number"):
        Hashed(values=jnp.zeros(0, jnp.float32), **given)
    with pytest.raises(ValueError, match=r"values is int32 \[2\], not float32"):
        Hashed(values=jnp.zeros(2, jnp.int32), **given)
    with pytest.raises(ValueError, match="seed -1"):
        Hashed(values=jnp.zeros(2, jnp.float32), seed=-1, **given)

"""Blocks left out of models that list them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress import checkpoint
from jcompress.shrinking.depth import (
    Removed,
    every,
    merge_blocks,
    remove_blocks,
    score_blocks,
    skipped,
)
from jcompress.shrinking.plan import ShrinkError


class Perceptron(nn.Module):
    """Only the residual connection leads past it."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        return x + nn.Dense(8)(nn.relu(nn.Dense(16)(x)))


class BeforeNorm(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, h, mask=mask)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))


class AfterNorm(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        attention = nn.MultiHeadDotProductAttention(num_heads=2)
        x = nn.LayerNorm()(x + attention(x, x, mask=mask))
        return nn.LayerNorm()(x + nn.Dense(8)(nn.gelu(nn.Dense(16)(x))))


class Stack(nn.Module):
    block: Any
    without: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(11, 8)(tokens)
        mask = nn.make_attention_mask(tokens > 0, tokens > 0)
        for number in range(3):
            if number not in self.without:
                x = self.block(name=f"b{number}")(x, mask)
        return nn.Dense(5)(nn.LayerNorm()(x))


TOKENS = jnp.arange(12).reshape(2, 6) % 11
BLOCKS = ["params/b0", "params/b1", "params/b2"]


def variables(block: Any) -> Any:
    return jax.jit(Stack(block).init)(jax.random.key(0), TOKENS)


@pytest.mark.parametrize("without", [(0,), (1,), (2,), (0, 1), (0, 2)])
@pytest.mark.parametrize(
    "block", [Perceptron, BeforeNorm, AfterNorm, nn.remat(BeforeNorm)]
)
def test_it_is_the_model_without_the_block(block: Any, without: Any) -> None:
    whole = variables(block)
    names = [BLOCKS[number] for number in without]
    small = remove_blocks(whole, names)
    got = jax.jit(skipped(jax.jit(Stack(block).apply), names))(small, TOKENS)
    want = jax.jit(Stack(block, without).apply)(whole, TOKENS)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_gradients_and_checkpoints(tmp_path: Any) -> None:
    small = remove_blocks(variables(Perceptron), BLOCKS[:1])
    fn = skipped(Stack(Perceptron).apply, BLOCKS[:1])
    gradients = jax.grad(lambda v: jnp.sum(fn(v, TOKENS) ** 2))(small)
    assert jax.tree.structure(gradients) == jax.tree.structure(small)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients["params"]["b1"]))
    checkpoint.save(tmp_path / "small", small)
    loaded = checkpoint.load(tmp_path / "small")
    assert isinstance(loaded["params"]["b0"]["Dense_0"]["kernel"], Removed)
    np.testing.assert_array_equal(fn(loaded, TOKENS), fn(small, TOKENS))


def test_scores_of_blocks() -> None:
    whole = variables(Perceptron)
    whole["params"]["b1"] = jax.tree.map(lambda w: 1e-3 * w, whole["params"]["b1"])
    scores = score_blocks(Stack(Perceptron).apply, whole, TOKENS, blocks=BLOCKS)
    assert min(scores, key=lambda name: scores[name]) == "params/b1"
    assert 0 <= scores["params/b1"] < 1e-3
    drop = score_blocks(
        Stack(Perceptron).apply,
        whole,
        TOKENS,
        blocks=BLOCKS[:1],
        distance=lambda a, b: jnp.abs(a - b).max(),
    )
    assert drop["params/b0"] > 0


def test_merged_blocks() -> None:
    whole = variables(Perceptron)
    merged = merge_blocks(whole, "params/b0", ["params/b1"])
    pairs = (whole["params"][name]["Dense_0"]["kernel"] for name in ("b0", "b1"))
    np.testing.assert_allclose(
        merged["params"]["b0"]["Dense_0"]["kernel"], sum(pairs) / 2, rtol=1e-6
    )
    np.testing.assert_array_equal(
        merged["params"]["b1"]["Dense_0"]["kernel"],
        whole["params"]["b1"]["Dense_0"]["kernel"],
    )


def test_every_second_block() -> None:
    names = [f"b{i}" for i in range(6)]
    assert [n for n in names if n not in every(names, keep=3)] == ["b0", "b2", "b5"]
    assert every(names, keep=6) == []
    assert every(names, keep=1) == names[1:]


def test_wrong_input() -> None:
    def model(p: Any, x: jax.Array) -> jax.Array:
        y: jax.Array = jax.nn.relu(x @ p["up"]["w"]) @ p["down"]["w"]
        return y

    params = {"up": {"w": jnp.ones((3, 4))}, "down": {"w": jnp.ones((4, 3))}}
    x = jnp.ones((1, 3))
    with pytest.raises(ShrinkError, match="'up' has no input of the shape"):
        skipped(model, ["up"])(params, x)
    with pytest.raises(ShrinkError, match=r"no leaf is below 'side'.*'up/w'"):
        skipped(model, ["side"])(params, x)
    with pytest.raises(ShrinkError, match="blocks are a list of names, not 'up'"):
        remove_blocks(params, "up")
    with pytest.raises(ShrinkError, match="removed with its block; run the function"):
        remove_blocks(params, ["up"])["up"]["w"].dense()
    with pytest.raises(
        ShrinkError, match=r"'up/w' is .3, 4., and there is no 'down/w'"
    ):
        merge_blocks(params, "up", ["down"])
    with pytest.raises(ValueError, match="keep is from 1 to 2"):
        every(["a", "b"], keep=0)

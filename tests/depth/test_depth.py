"""Blocks left out of models that list them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress import checkpoint
from jcompress.depth.removing import (
    leave_out_evenly,
    remove_blocks,
    skipped,
)
from jcompress.errors import MismatchError
from jcompress.shrinking.groups import find_groups
from jcompress.shrinking.plan import shrink, shrunk
from jcompress.tensors import RemovedArray


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


FAST = {"xla_backend_optimization_level": 0}
TOKENS = jnp.arange(12).reshape(2, 6) % 11
BLOCKS = ["params/b0", "params/b1", "params/b2"]


def filled(model: nn.Module) -> Any:
    """Variables of random numbers, which are faster made than initialized."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )


def variables(block: Any) -> Any:
    return filled(Stack(block))


def run(fn: Any, *args: Any) -> Any:
    return jax.jit(fn, compiler_options=FAST)(*args)


@pytest.mark.parametrize("without", [(0,), (1,), (2,), (0, 1), (0, 2)])
@pytest.mark.parametrize(
    "block", [Perceptron, BeforeNorm, AfterNorm, nn.remat(BeforeNorm)]
)
def test_it_is_the_model_without_the_block(block: Any, without: Any) -> None:
    whole = variables(block)
    names = [BLOCKS[number] for number in without]
    small = remove_blocks(whole, names)
    got = run(skipped(jax.jit(Stack(block).apply), names), small, TOKENS)
    want = run(Stack(block, without).apply, whole, TOKENS)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_gradients_and_checkpoints(tmp_path: Any) -> None:
    small = remove_blocks(variables(Perceptron), BLOCKS[:1])
    fn = skipped(Stack(Perceptron).apply, BLOCKS[:1])
    gradients = jax.grad(lambda v: jnp.sum(fn(v, TOKENS) ** 2))(small)
    assert jax.tree.structure(gradients) == jax.tree.structure(small)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients["params"]["b1"]))
    checkpoint.save(tmp_path / "small", small)
    loaded = checkpoint.load(tmp_path / "small")
    assert isinstance(loaded["params"]["b0"]["Dense_0"]["kernel"], RemovedArray)
    np.testing.assert_array_equal(fn(loaded, TOKENS), fn(small, TOKENS))


def test_every_second_block() -> None:
    names = [f"b{i}" for i in range(6)]
    assert [n for n in names if n not in leave_out_evenly(names, keep=3)] == [
        "b0",
        "b2",
        "b5",
    ]
    assert leave_out_evenly(names, keep=6) == []
    assert leave_out_evenly(names, keep=1) == names[1:]


class Looped(nn.Module):
    """The blocks of `Stack`, run by a scan."""

    layers: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(11, 8)(tokens)
        blocks = nn.scan(
            lambda block, x, mask: (block(x, mask), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.layers,
        )
        mask = nn.make_attention_mask(tokens > 0, tokens > 0)
        x, _ = blocks(Perceptron(name="blocks"), x, mask)
        return nn.Dense(5)(nn.LayerNorm()(x))


def test_a_student_of_every_second_layer_of_a_stack() -> None:
    """It is the same class with half the layers, and starts as the teacher's."""
    model = Looped(6)
    teacher = filled(model)
    groups = find_groups(model.apply, teacher, TOKENS)
    (stack,) = (group.name for group in groups if group.size == 6)
    plan = groups.keep({stack: range(0, 6, 2)})
    student = shrink(teacher, plan)
    for name in ("blocks", "Dense_0"):
        jax.tree.map(
            np.testing.assert_array_equal,
            student["params"][name],
            jax.tree.map(
                lambda leaf: leaf[::2] if leaf.shape[0] == 6 else leaf,
                teacher["params"][name],
            ),
        )
    wanted = jax.jit(Looped(3).apply)(student, TOKENS)
    found = jax.jit(shrunk(model.apply, plan))(student, TOKENS)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_wrong_input() -> None:
    def model(p: Any, x: jax.Array) -> jax.Array:
        y: jax.Array = jax.nn.relu(x @ p["up"]["w"]) @ p["down"]["w"]
        return y

    params = {"up": {"w": jnp.ones((3, 4))}, "down": {"w": jnp.ones((4, 3))}}
    x = jnp.ones((1, 3))
    with pytest.raises(MismatchError, match="'up' has no input of the shape"):
        skipped(model, ["up"])(params, x)
    with pytest.raises(MismatchError, match=r"no leaf is below 'side'.*'up/w'"):
        skipped(model, ["side"])(params, x)
    with pytest.raises(MismatchError, match="blocks are a list of names, not 'up'"):
        remove_blocks(params, "up")
    with pytest.raises(MismatchError, match="removed with its block; run the function"):
        remove_blocks(params, ["up"])["up"]["w"].dense()
    with pytest.raises(ValueError, match="keep is from 1 to 2"):
        leave_out_evenly(["a", "b"], keep=0)

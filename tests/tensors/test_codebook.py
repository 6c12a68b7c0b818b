"""`Codebook`: its storage, its life as a pytree, loops over it, and its errors."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.tensors import Codebook
from jcompress.tensors.axes import Axes

FLAT = Axes((), (0,), (1,))


def clustered(shape: tuple[int, ...], values: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return rng.normal(size=values).astype(np.float32)[rng.integers(values, size=shape)]


@pytest.mark.parametrize(("values", "inputs"), [(5, 7), (16, 8), (17, 7), (256, 64)])
def test_storage_is_the_formula(values: int, inputs: int) -> None:
    matrix = clustered((9, inputs), values)
    tensor = Codebook.of(jnp.asarray(matrix), FLAT)
    table = np.asarray(tensor.codebook)
    assert table.shape == (1, len(np.unique(matrix)))
    packed = table.shape[1] <= 16
    assert tensor.indices.shape == (9, -(-inputs // 2) if packed else inputs)
    for n, k in np.ndindex(9, inputs):
        if packed:
            index = int(tensor.indices[n, k // 2]) >> (4 * (k % 2)) & 15
        else:
            index = int(tensor.indices[n, k])
        assert table[0, index] == matrix[n, k]
    np.testing.assert_array_equal(tensor.dense(), matrix)


def test_each_copy_of_a_stack_has_its_table() -> None:
    parts = [clustered((4, 6), values, seed=values) for values in (3, 5)]
    dense = jnp.asarray(np.stack(parts).transpose(2, 0, 1))
    tensor = Codebook.of(dense, Axes((1,), (2,), (0,)))
    assert tensor.codebook.shape == (2, 1, 5)
    np.testing.assert_array_equal(tensor.dense(), dense)
    stacked = Codebook.of(jnp.asarray(np.stack(parts)), Axes((0,), (1,), (2,)))
    opened = stacked.unstack()
    assert opened is not None
    arrays, rebuild = opened
    _, again = jax.lax.scan(
        lambda _, slices: (None, rebuild(slices).dense()), None, arrays
    )
    np.testing.assert_array_equal(again, np.stack(parts))


def test_several_tables_and_bfloat16() -> None:
    parts = [clustered((4, 6), 4, seed=seed) for seed in (1, 2)]
    made = [Codebook.of(jnp.asarray(part), FLAT) for part in parts]
    both = Codebook(
        indices=jnp.concatenate([t.indices for t in made]),
        codebook=jnp.concatenate([t.codebook for t in made]),
        shape=(8, 6),
        dtype=jnp.bfloat16,
        output_axes=(0,),
        input_axes=(1,),
    )
    dense = jnp.asarray(np.concatenate(parts), jnp.bfloat16)
    np.testing.assert_array_equal(jax.jit(lambda t: t.dense())(both), dense)
    assert both.stored_bytes == 8 * 3 + 2 * 4 * 4


def test_values_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"takes 300 different values, .* at most 256"):
        Codebook.of(jnp.arange(300.0).reshape(3, 100), FLAT)
    with pytest.raises(ValueError, match="not finite"):
        Codebook.of(jnp.asarray([[1.0, jnp.nan]]), FLAT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook": jnp.ones((4, 5))}, r"codebook is \[4, 5\], .* divisor of 9"),
        ({"codebook": jnp.ones((1, 300))}, "C from 1 to 256"),
        ({"codebook": jnp.ones(5)}, r"codebook is \[5\]"),
        ({"codebook": jnp.ones((1, 20))}, r"indices is uint8 \[9, 4\], .* \[9, 7\]"),
        ({"indices": jnp.ones((9, 4), jnp.int8)}, "indices is int8"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    tensor = Codebook.of(jnp.asarray(clustered((9, 7), 5)), FLAT)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tensor, **changes)

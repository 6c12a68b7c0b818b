"""`BlockSparse`: its storage, its life as a pytree, loops over it, and its errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jcompress.tensors import BlockSparse, is_compressed
from jcompress.tensors.block_sparse import take_blocks


def pruned(shape: tuple[int, ...], block: tuple[int, int], seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    *stacks, outputs, inputs = shape
    keep = rng.random((*stacks, outputs // block[0], inputs // block[1])) < 0.4
    mask = np.repeat(np.repeat(keep, block[0], -2), block[1], -1)
    return (rng.normal(size=shape) * mask).astype(np.float32)


def make(matrix: Any, block: tuple[int, int] = (2, 3), **changes: Any) -> BlockSparse:
    """A tensor whose dense array is its matrix, unless `changes` say otherwise."""
    stacks = matrix.ndim - 2
    blocks, columns, starts = map(jnp.asarray, take_blocks(matrix, block))
    given = {
        "blocks": blocks,
        "columns": columns,
        "starts": starts,
        "shape": matrix.shape,
        "dtype": jnp.float32,
        "stack_axes": tuple(range(stacks)),
        "output_axes": (stacks,),
        "input_axes": (stacks + 1,),
    }
    return BlockSparse(**{**given, **changes})


@settings(max_examples=15)
@given(
    stack=st.integers(1, 3),
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    tiles=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 2**31 - 1),
)
def test_storage_is_the_formula(
    stack: int, block: tuple[int, int], tiles: tuple[int, int], seed: int
) -> None:
    (bn, bk), (rows, across) = block, tiles
    matrix = pruned((stack, rows * bn, across * bk), block, seed)
    blocks, columns, starts = take_blocks(matrix, block)
    assert blocks.shape[:2] == columns.shape
    assert starts.shape == (stack, rows + 1)
    rebuilt = np.zeros_like(matrix)
    for s in range(stack):
        assert starts[s, 0] == 0
        for r in range(rows):
            found = columns[s, starts[s, r] : starts[s, r + 1]]
            assert (np.diff(found) > 0).all()
            for b in range(starts[s, r], starts[s, r + 1]):
                assert blocks[s, b].any()
                c = columns[s, b]
                rebuilt[s, r * bn : (r + 1) * bn, c * bk : (c + 1) * bk] = blocks[s, b]
        assert not blocks[s, starts[s, -1] :].any()
        assert not columns[s, starts[s, -1] :].any()
    np.testing.assert_array_equal(rebuilt, matrix)


def test_dense_with_axes_in_any_order() -> None:
    matrix = pruned((3, 6, 12), (2, 3))
    tensor = make(
        matrix,
        shape=(2, 3, 3, 4, 3),
        stack_axes=(1,),
        output_axes=(4, 0),
        input_axes=(3, 2),
    )
    parts = matrix.reshape(3, 2, 3, 3, 4)
    expected = np.einsum("sabij->asijb", parts)
    np.testing.assert_array_equal(tensor.dense(), expected)
    np.testing.assert_array_equal(make(matrix).dense(), matrix)


def test_int8_and_bfloat16() -> None:
    matrix = pruned((6, 12), (2, 3))
    values = np.clip(np.rint(matrix * 50), -127, 127).astype(np.int8)
    scales = jnp.linspace(0.5, 1.0, 6)[:, None]
    tensor = make(values, scales=scales)
    np.testing.assert_array_equal(tensor.dense(), values * np.asarray(scales))
    assert tensor.blocks.dtype == jnp.int8
    half = make(np.asarray(jnp.asarray(matrix, jnp.bfloat16)), dtype=jnp.bfloat16)
    assert half.dense().dtype == jnp.bfloat16
    np.testing.assert_array_equal(half.dense(), jnp.asarray(matrix, jnp.bfloat16))


def test_only_the_blocks_are_stored() -> None:
    matrix = np.zeros((8, 12), np.float32)
    matrix[2:4, 3:6] = 1
    matrix[6:8, 9:12] = 1
    tensor = make(matrix)
    assert tensor.block_shape == (2, 3)
    assert tensor.stored_bytes == 4 * (2 * 6 + 2 + 5)
    nothing = make(np.zeros((8, 12), np.float32))
    assert nothing.blocks.shape == (1, 2, 3)
    np.testing.assert_array_equal(nothing.dense(), np.zeros((8, 12)))


def test_is_a_pytree() -> None:
    matrix = pruned((6, 12), (2, 3))
    tensor = make(matrix)
    assert is_compressed(tensor)
    again = jax.jit(lambda t: t)(tensor)
    assert jax.tree.structure(again) == jax.tree.structure(tensor)
    np.testing.assert_array_equal(again.dense(), matrix)
    paths = jax.tree_util.tree_flatten_with_path(tensor)[0]
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    assert names == [".blocks", ".columns", ".starts"]
    assert jax.tree.map(lambda _: None, tensor).blocks is None
    hash(jax.tree.structure(tensor))


def test_scan_over_a_stack() -> None:
    matrix = pruned((3, 6, 12), (2, 3))
    tensor = make(matrix)
    opened = tensor.unstack()
    assert opened is not None
    arrays, rebuild = opened

    def body(_: None, slices: list[jax.Array]) -> tuple[None, jax.Array]:
        layer = rebuild(slices)
        assert layer.shape == (6, 12)
        return None, layer.dense()

    _, dense = jax.lax.scan(body, None, arrays)
    np.testing.assert_array_equal(dense, matrix)
    assert make(matrix[0]).unstack() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": jnp.ones((2, 3))}, r"blocks is \[2, 3\], not \[B, bn, bk\]"),
        ({"blocks": jnp.ones((0, 2, 3))}, "with B >= 1"),
        ({"blocks": jnp.ones((7, 4, 3))}, "blocks of 4 x 3 do not tile .* 6 outputs"),
        ({"blocks": jnp.ones((7, 2, 3), jnp.float16)}, r"blocks is float16 .* not fl"),
        ({"columns": jnp.ones(3, jnp.int32)}, r"columns is int32 \[3\], not int32"),
        ({"starts": jnp.ones(4)}, r"starts is float32 \[4\], not int32 \[4\]"),
        ({"scales": jnp.ones((6, 1))}, "int8 blocks need scales, floats have none"),
        ({"input_axes": (0,)}, r"do not partition the 2 axes of shape \(6, 12\)"),
    ],
)  # fmt: skip
def test_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(pruned((6, 12), (2, 3)), **changes)

"""`NMSparse`: its storage, its life as a pytree, loops over it, and its errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jcompress.tensors import NMSparse
from jcompress.tensors.nm_sparse import take_kept


def pruned(shape: tuple[int, ...], n: int, m: int, seed: int = 0) -> Any:
    """At most n of every m, fewer in some groups."""
    rng = np.random.default_rng(seed)
    groups = -(-shape[-1] // m)
    rank = rng.random((*shape[:-1], groups, m)).argsort(-1)
    keep = (rank < n) & (rng.random(rank.shape) < 0.8)
    mask = keep.reshape(*shape[:-1], -1)[..., : shape[-1]]
    return (rng.normal(size=shape) * mask).astype(np.float32)


def make(matrix: Any, n: int = 2, m: int = 4, **changes: Any) -> NMSparse:
    """A tensor whose dense array is its matrix, unless `changes` say otherwise."""
    stacks = matrix.ndim - 2
    values, mask = map(jnp.asarray, take_kept(matrix, n, m))
    given = {
        "values": values,
        "mask": mask,
        "n": n,
        "m": m,
        "shape": matrix.shape,
        "dtype": jnp.float32,
        "stack_axes": tuple(range(stacks)),
        "output_axes": (stacks,),
        "input_axes": (stacks + 1,),
    }
    return NMSparse(**{**given, **changes})


@settings(max_examples=20)
@given(
    pattern=st.sampled_from([(1, 2), (2, 4), (1, 4), (2, 8), (4, 8), (3, 5)]),
    inputs=st.integers(1, 21),
    seed=st.integers(0, 2**31 - 1),
)
def test_storage_is_the_formula(
    pattern: tuple[int, int], inputs: int, seed: int
) -> None:
    n, m = pattern
    matrix = pruned((2, 3, inputs), n, m, seed)
    values, mask = take_kept(matrix, n, m)
    assert values.shape == (2, 3, -(-inputs // m) * n)
    assert mask.shape == (2, 3, -(-inputs // 8))
    for s, i in np.ndindex(2, 3):
        kept = [int(mask[s, i, k // 8]) >> (k % 8) & 1 for k in range(inputs)]
        for start in range(0, inputs, m):
            size = len(kept[start : start + m])
            assert sum(kept[start : start + m]) == min(n, size)
        rebuilt = np.zeros(inputs, np.float32)
        rebuilt[np.flatnonzero(kept)] = values[s, i, : sum(kept)]
        np.testing.assert_array_equal(rebuilt, matrix[s, i])
        assert not values[s, i, sum(kept) :].any()
        assert int(mask[s, i, -1]) >> (inputs % 8 or 8) == 0


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 5)])
def test_dense(n: int, m: int) -> None:
    matrix = pruned((2, 3, 21), n, m)
    np.testing.assert_array_equal(make(matrix, n, m).dense(), matrix)


def test_axes_dtypes_and_bytes() -> None:
    matrix = pruned((3, 6, 16), 2, 4)
    tensor = make(
        matrix,
        shape=(2, 3, 4, 4, 3),
        stack_axes=(1,),
        output_axes=(4, 0),
        input_axes=(3, 2),
    )
    parts = matrix.reshape(3, 2, 3, 4, 4)
    np.testing.assert_array_equal(tensor.dense(), np.einsum("sabij->asijb", parts))
    assert tensor.stored_bytes == 3 * 6 * (8 * 4 + 2)
    values = np.clip(np.rint(matrix[0] * 50), -127, 127).astype(np.int8)
    scales = jnp.linspace(0.5, 1.0, 6)[:, None]
    integers = make(values, scales=scales)
    np.testing.assert_array_equal(integers.dense(), values * np.asarray(scales))
    half = jnp.asarray(matrix[0], jnp.bfloat16)
    narrow = make(np.asarray(half), dtype=jnp.bfloat16).dense()
    np.testing.assert_array_equal(narrow, half)


def test_scan_over_a_stack() -> None:
    matrix = pruned((3, 6, 16), 2, 4)
    opened = make(matrix).unstack()
    assert opened is not None
    arrays, rebuild = opened
    _, dense = jax.lax.scan(
        lambda _, slices: (None, rebuild(slices).dense()), None, arrays
    )
    np.testing.assert_array_equal(dense, matrix)
    again = jax.jit(lambda t: t)(make(matrix))
    assert (again.n, again.m) == (2, 4)
    np.testing.assert_array_equal(again.dense(), matrix)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 4}, "1 <= n < m, not n = 4, m = 4"),
        ({"values": jnp.ones((6, 4))}, r"values is float32 \[6, 4\], not .* \[6, 8\]"),
        ({"values": jnp.ones((6, 8), jnp.float16)}, "values is float16"),
        ({"mask": jnp.ones((6, 3), jnp.uint8)}, r"mask is uint8 \[6, 3\], not uint8"),
        ({"scales": jnp.ones((6, 1))}, "int8 values need scales, floats have none"),
        ({"output_axes": ()}, "do not partition the 2 axes"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(pruned((6, 16), 2, 4), **changes)

"""`UnstructuredSparse`: its storage, its life as a pytree, in loops, its errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jcompress.tensors import UnstructuredSparse
from jcompress.tensors.unstructured_sparse import pack_values, take_values


def pruned(shape: tuple[int, ...], density: float = 0.3, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * (rng.random(shape) < density)).astype(np.float32)


def make(matrix: Any, **changes: Any) -> UnstructuredSparse:
    """A tensor whose dense array is its matrix, unless `changes` say otherwise."""
    stacks = matrix.ndim - 2
    values, mask, starts = map(jnp.asarray, take_values(matrix))
    given = {
        "values": values,
        "mask": mask,
        "starts": starts,
        "shape": matrix.shape,
        "dtype": jnp.float32,
        "stack_axes": tuple(range(stacks)),
        "output_axes": (stacks,),
        "input_axes": (stacks + 1,),
    }
    return UnstructuredSparse(**{**given, **changes})


@settings(max_examples=20)
@given(
    density=st.sampled_from([0.0, 0.2, 1.0]),
    inputs=st.integers(1, 21),
    seed=st.integers(0, 2**31 - 1),
)
def test_storage_is_the_formula(density: float, inputs: int, seed: int) -> None:
    matrix = pruned((2, 3, inputs), density, seed)
    values, mask, starts = take_values(matrix)
    assert mask.shape == (2, 3, -(-inputs // 8))
    assert values.shape == (2, max(1, (matrix != 0).sum((1, 2)).max()))
    assert starts.dtype == np.int32
    for s, i in np.ndindex(2, 3):
        kept = [int(mask[s, i, k // 8]) >> (k % 8) & 1 for k in range(inputs)]
        own = values[s, starts[s, i] : starts[s, i + 1]]
        rebuilt = np.zeros(inputs, np.float32)
        rebuilt[np.flatnonzero(kept)] = own
        np.testing.assert_array_equal(rebuilt, matrix[s, i])
        assert int(mask[s, i, -1]) >> (inputs % 8 or 8) == 0
    for s in range(2):
        assert starts[s, 0] == 0
        assert not values[s, starts[s, -1] :].any()


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_dense(density: float) -> None:
    matrix = pruned((2, 3, 21), density)
    np.testing.assert_array_equal(make(matrix).dense(), matrix)


def test_axes_dtypes_and_bytes() -> None:
    matrix = pruned((3, 6, 16))
    tensor = make(
        matrix,
        shape=(2, 3, 4, 4, 3),
        stack_axes=(1,),
        output_axes=(4, 0),
        input_axes=(3, 2),
    )
    parts = matrix.reshape(3, 2, 3, 4, 4)
    np.testing.assert_array_equal(tensor.dense(), np.einsum("sabij->asijb", parts))
    most = int((matrix != 0).sum((1, 2)).max())
    assert tensor.stored_bytes == 3 * (4 * most + 6 * 2 + 7 * 4)
    values = np.clip(np.rint(matrix[0] * 50), -127, 127).astype(np.int8)
    scales = jnp.linspace(0.5, 1.0, 6)[:, None]
    integers = make(values, scales=scales)
    np.testing.assert_array_equal(integers.dense(), values * np.asarray(scales))
    half = jnp.asarray(matrix[0], jnp.bfloat16)
    narrow = make(np.asarray(half), dtype=jnp.bfloat16).dense()
    np.testing.assert_array_equal(narrow, half)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_integers_of_four_bits(groups: int, density: float) -> None:
    rng = np.random.default_rng(3)
    numbers = rng.integers(-8, 8, (2, 7, 16)).astype(np.int8)
    numbers[rng.random(numbers.shape) >= density] = 0
    values, _, _ = take_values(numbers)
    packed = pack_values(values)
    count = values.shape[-1]
    assert packed.shape == (2, -(-count // 2))
    scales = rng.random((2, 7, groups)).astype(np.float32)
    tensor = make(numbers, values=jnp.asarray(packed), scales=jnp.asarray(scales))
    wide = numbers.astype(np.float32) * np.repeat(scales, 16 // groups, axis=2)
    np.testing.assert_array_equal(tensor.dense(), wide)
    assert tensor.stored_bytes == 2 * (-(-count // 2) + 7 * 2 + 8 * 4 + 7 * groups * 4)
    assert tensor.stored_values == 2 * (count + count % 2)
    groups_of = " group 4" if groups == 4 else ""
    assert tensor.form == f"UnstructuredSparse int4{groups_of}"
    opened = tensor.unstack()
    assert opened is not None
    slices, rebuild = opened
    second = rebuild([each[1] for each in slices]).dense()
    np.testing.assert_array_equal(second, wide[1])


def test_scan_over_a_stack() -> None:
    matrix = pruned((3, 6, 16))
    opened = make(matrix).unstack()
    assert opened is not None
    arrays, rebuild = opened
    _, dense = jax.lax.scan(
        lambda _, slices: (None, rebuild(slices).dense()), None, arrays
    )
    np.testing.assert_array_equal(dense, matrix)
    again = jax.jit(lambda t: t)(make(matrix))
    np.testing.assert_array_equal(again.dense(), matrix)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": jnp.ones((6, 4))}, r"values is \[6, 4\], not \[V\] with V >= 1"),
        ({"values": jnp.ones(0)}, r"values is \[0\], not \[V\] with V >= 1"),
        ({"values": jnp.ones(8, jnp.float16)}, "values is float16"),
        ({"mask": jnp.ones((6, 3), jnp.uint8)}, r"mask is uint8 \[6, 3\], not uint8"),
        ({"starts": jnp.zeros(6, jnp.int32)}, r"starts is int32 \[6\], not int32 \[7"),
        ({"scales": jnp.ones((6, 1))}, "int8 and uint8 values need scales, floats"),
        ({"values": jnp.ones(8, jnp.uint8)}, "int8 and uint8 values need scales"),
        (
            {"values": jnp.ones(8, jnp.int8), "scales": jnp.ones((6, 3))},
            "3 groups of scales do not divide 16 inputs",
        ),
        (
            {"values": jnp.ones(8, jnp.uint8), "scales": jnp.ones((5, 4))},
            r"scales is float32 \[5, 4\], not float32 \[6, 4\]",
        ),
        ({"output_axes": ()}, "do not partition the 2 axes"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(pruned((6, 16)), **changes)

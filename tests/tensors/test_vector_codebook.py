"""`VectorCodebook`: its storage against NumPy, its life as a pytree, and its errors."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress import checkpoint
from jcompress.tensors import VectorCodebook
from jcompress.tensors.vector_codebook import pack_codes, unpack_codes

SETTINGS = ((4, 1, 8), (2, 1, 4), (3, 1, 7), (8, 2, 5), (5, 3, 1), (1, 4, 3))
"""Weights a code, codes, and bits of each."""


def parts(
    length: int, count: int, bits: int, outputs: int = 5, inputs: int = 37
) -> tuple[Any, Any, Any]:
    """Codes [N, M, J], tables and scales."""
    rng = np.random.default_rng(length)
    vectors = -(-inputs // length)
    codes = rng.integers(2**bits, size=(outputs, count, vectors)).astype(np.uint8)
    tables = rng.normal(size=(count, 2**bits, length)).astype(np.float32)
    return codes, tables, rng.normal(size=(outputs, 1)).astype(np.float32)


def leaf(codes: Any, tables: Any, scales: Any, **changes: Any) -> VectorCodebook:
    bits = int(np.log2(tables.shape[-2]))
    given: dict[str, Any] = {
        "codes": pack_codes(jnp.asarray(codes), bits),
        "tables": jnp.asarray(tables),
        "scales": jnp.asarray(scales),
        "shape": (codes.shape[0], 37),
        "dtype": jnp.float32,
        "output_axes": (0,),
        "input_axes": (1,),
    }
    return VectorCodebook(**{**given, **changes})


@pytest.mark.parametrize(("length", "count", "bits"), SETTINGS)
def test_storage_is_the_formula(length: int, count: int, bits: int) -> None:
    codes, tables, scales = parts(length, count, bits)
    tensor = leaf(codes, tables, scales)
    stored = np.asarray(tensor.codes)
    vectors = -(-37 // length)
    assert stored.shape == (5, count, bits * -(-vectors // 8))
    for n, m, j in np.ndindex(codes.shape):
        at = bits * (j // 8)
        whole = int.from_bytes(stored[n, m, at : at + bits].tobytes(), "little")
        assert whole >> (bits * (j % 8)) & (2**bits - 1) == codes[n, m, j]
    expected = np.zeros((5, 37), np.float32)
    for n, k in np.ndindex(5, 37):
        entries = [
            tables[m, codes[n, m, k // length], k % length] for m in range(count)
        ]
        expected[n, k] = np.sum(entries, dtype=np.float32) * scales[n, 0]
    np.testing.assert_allclose(tensor.dense(), expected, rtol=2e-6, atol=1e-6)
    assert tensor.stored_bytes == stored.size + 4 * (tables.size + scales.size)
    assert (tensor.length, tensor.bits) == (length, bits)
    assert tensor.form == f"VectorCodebook {count}x{bits} bits of {length}"


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_goes_both_ways(bits: int) -> None:
    codes = np.random.default_rng(0).integers(2**bits, size=(2, 3, 21))
    packed = pack_codes(jnp.asarray(codes, jnp.uint8), bits)
    assert packed.shape == (2, 3, 3 * bits)
    np.testing.assert_array_equal(unpack_codes(packed, bits, 21), codes)


def test_stacks_loops_and_bfloat16() -> None:
    made = [parts(4, 2, 5), parts(4, 2, 5)]
    # Copies that differ, so that a table that is read for the other is seen.
    made[1] = tuple(np.flip(part, axis=0) for part in made[1])
    copies = [leaf(*one, dtype=jnp.bfloat16) for one in made]
    stacked = VectorCodebook(
        **{
            name: jnp.stack([getattr(one, name) for one in copies])
            for name in VectorCodebook.arrays
        },
        shape=(2, 5, 37),
        dtype=jnp.bfloat16,
        stack_axes=(0,),
        output_axes=(1,),
        input_axes=(2,),
    )
    expected = np.stack([np.asarray(one.dense()) for one in copies])
    assert not np.array_equal(expected[0], expected[1])
    np.testing.assert_array_equal(jax.jit(lambda t: t.dense())(stacked), expected)
    opened = stacked.unstack()
    assert opened is not None
    arrays, rebuild = opened
    _, again = jax.lax.scan(
        lambda _, slices: (None, rebuild(slices).dense()), None, arrays
    )
    np.testing.assert_array_equal(again, expected)


def test_a_checkpoint_keeps_it(tmp_path: Any) -> None:
    tensor = leaf(*parts(4, 1, 8))
    checkpoint.save(tmp_path / "kept", {"w": tensor})
    again = checkpoint.load(tmp_path / "kept")["w"]
    assert isinstance(again, VectorCodebook)
    np.testing.assert_array_equal(again.dense(), tensor.dense())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": jnp.ones((1, 6, 4))}, r"tables is \[1, 6, 4\], .* a power of 2"),
        ({"tables": jnp.ones((1, 512, 4))}, "power of 2 up to 256"),
        ({"tables": jnp.ones((5, 16, 4))}, "M at most 4"),
        ({"tables": jnp.ones((1, 16, 9))}, "D at most 8"),
        ({"tables": jnp.ones((16, 4))}, r"tables is \[16, 4\]"),
        ({"tables": jnp.ones((1, 16, 4), jnp.bfloat16)}, "tables is bfloat16"),
        ({"tables": jnp.ones((1, 32, 4))}, r"codes is uint8 .*, not uint8 \[5, 1, 10"),
        ({"scales": jnp.ones(5)}, r"scales is float32 \[5\], not float32 \[5, 1\]"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(leaf(*parts(4, 1, 4)), **changes)

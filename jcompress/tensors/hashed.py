"""`Hashed`: a weight whose entries are read from a short vector by a fixed hash."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.tensors.axes import from_matrix
from jcompress.tensors.matrix import MatrixTensor
from jcompress.tensors.rounding import round_to

_SIGN = 0x9E3779B9
"""Added to the seed where the hash decides on a sign."""


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Hashed(MatrixTensor):
    """A weight that reads each entry from a short vector, at a hash of its position.

    With `h` the hash of `hash_of`, for each matrix of `MatrixTensor`:

        matrix[s, n, k] = sign * values[s, h(n K + k, seed) mod B]
        sign = -1 if `signs` and h(n K + k, seed + 0x9E3779B9) >= 2^31, else 1

    cast to `dtype`. No index is stored: the positions and the seed are the index. Its
    only array is `values`, so that it trains as any parameter does, by gradients with
    respect to the leaf: each value gets the signed sum of those of its entries.
    Invariants, the shapes of which are checked on construction:

        values: float32 [*S, B], B >= 1
        0 <= seed < 2^32,  N K < 2^32

    Attributes:
        values: the shared values.
        seed: which of the hashes it is.
        signs: whether entries that share a value may differ in sign, which takes away
            the bias of an inner product.

    Raises:
        ValueError: an invariant does not hold.

    References:
        Chen et al. 2015, "Compressing Neural Networks with the Hashing Trick".
    """

    arrays: ClassVar[tuple[str, ...]] = ("values",)

    values: jax.Array
    seed: int = 0
    signs: bool = True

    def check_arrays(self) -> None:
        """Raise ValueError if an array is not of the shape and dtype it should be."""
        *stacks, outputs, inputs = self.matrix_shape
        size = self.values.shape[-1] if self.values.ndim else 0
        if size < 1:
            raise ValueError("Hashed: values holds no number to share")
        self.check_array("values", (*stacks, size), jnp.float32)
        if not 0 <= self.seed < 2**32 or outputs * inputs >= 2**32:
            raise ValueError(
                f"Hashed: seed {self.seed} and the {outputs * inputs} positions of a "
                "matrix must be below 2^32"
            )

    def _dense(self) -> jax.Array:
        *_, outputs, inputs = self.matrix_shape
        places, signs = places_and_signs(
            outputs * inputs, self.values.shape[-1], seed=self.seed, signs=self.signs
        )
        copies = self.values.reshape(-1, self.values.shape[-1])
        matrix = jnp.take(copies, places, axis=1) * signs[None]
        matrix = matrix.reshape(self.matrix_shape)
        return from_matrix(round_to(matrix, self.dtype), self.axes, self.shape)


def hash_of(numbers: jax.Array, seed: int) -> jax.Array:
    """A hash of 32 bits: the finalizer of MurmurHash3, of `numbers` mixed with a seed.

        x = numbers xor mix(seed + 0x9E3779B9);  hash = mix(x)
        mix: x ^= x >> 16; x *= 0x85EBCA6B; x ^= x >> 13; x *= 0xC2B2AE35; x ^= x >> 16

    Args:
        numbers: uint32.
        seed: below 2^32.
    """
    start = _mix(jnp.asarray((seed + _SIGN) % 2**32, jnp.uint32))
    return _mix(numbers ^ start)


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def places_and_signs(
    size: int, values: int, *, seed: int, signs: bool
) -> tuple[jax.Array, jax.Array]:
    """Where each of `size` positions reads among `values` shared ones, and its sign.

    Returns:
        Places, int32 [size], and signs, float32 [size], all 1 if not `signs`.
    """
    positions = jax.lax.iota(jnp.uint32, size)
    places = (hash_of(positions, seed) % np.uint32(values)).astype(jnp.int32)
    if not signs:
        return places, jnp.ones(size, jnp.float32)
    negative = hash_of(positions, (seed + _SIGN) % 2**32) >= np.uint32(2**31)
    return places, jnp.where(negative, np.float32(-1), np.float32(1))

"""Stored vectors as attention reads them: packed integers by their places in bytes."""

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import Int
from jcompress.formats.packing import unpack_apart
from jcompress.kv_cache.cache import Stored, unscaled
from jcompress.tensors.rounding import dequantize_values


def in_parts(stored: Stored) -> int:
    """Into how many parts `unscaled_parts` takes a vector: 1 if it stays whole."""
    spec = stored.spec
    if spec is None or not isinstance(spec.format, Int):
        return 1
    bits, each = spec.format.bits, stored.size // spec.groups(stored.size)
    return 8 // bits if bits in (1, 2, 4) and each % (8 // bits) == 0 else 1


def unscaled_parts(stored: Stored) -> tuple[list[jax.Array], jax.Array | None]:
    """What `unscaled` gives, as P = `in_parts` arrays: each P-th number, from the p-th.

    Sums over the numbers of a vector, and over vectors, are as well made of parts, and
    parts are what packed integers give fast.
    """
    count = in_parts(stored)
    if count == 1:
        whole, scales = unscaled(stored)
        return [whole], scales
    spec = stored.spec
    assert spec is not None
    assert stored.scales is not None
    scales = spec.scales.read(stored.scales, None) * np.float32(spec.format.unit)
    parts = unpack_apart(stored.numbers, spec.format.bits)
    zeros, groups = stored.zeros, scales.shape[-1]
    if groups == 1:
        one = jnp.ones((1,) * stored.numbers.ndim, jnp.float32)
        return [dequantize_values(part, one, zeros) for part in parts], scales

    def over(shared: jax.Array) -> jax.Array:
        return jnp.repeat(shared, stored.size // count // groups, axis=-1)

    shifts = None if zeros is None else over(zeros)
    return [dequantize_values(part, over(scales), shifts) for part in parts], None

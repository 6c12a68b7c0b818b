"""Floats times a weight of float8 on a CPU, as XLA compiles it.

For few rows the activations are written as sums of bfloat16 numbers, three for a
float32, exactly. The parts of a row become rows of one product in bfloat16, for which
the converted weight has half the bytes of float32.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._float8 import dot_by_blocks
from jcompress.kernels._rows import at_most
from jcompress.tensors.rounding import round_to

PARTS = {"bfloat16": 1, "float16": 2, "float32": 3}
"""How many numbers of bfloat16 add up to one of each dtype."""
MOST_ROWS = 192
"""The most rows of parts with which they pay, if there are several."""


def by_parts(
    x: jax.Array, values: jax.Array, scales: jax.Array, out_dtype: Any = None
) -> jax.Array:
    """[M, K] x float8 [N, K], scales [N, 1] -> [M, N], `out_dtype` or that of `x`."""
    rows, outputs = x.shape[0], values.shape[0]
    parts = PARTS[x.dtype.name]
    rest = x.astype(jnp.float32)
    if parts > 1 and not at_most(parts * rows, MOST_ROWS, unknown=False):
        found = [rest]
    else:
        found = []
        for _ in range(parts):
            part = round_to(rest, jnp.bfloat16)
            found.append(part)
            rest = rest - part.astype(jnp.float32)
    sums = dot_by_blocks(jnp.concatenate(found), values)
    places = sums.reshape(len(found), rows, outputs)
    # The smallest first.
    total = places[-1]
    for place in range(len(found) - 2, -1, -1):
        total = places[place] + total
    return (total * scales[:, 0][None]).astype(out_dtype or x.dtype)

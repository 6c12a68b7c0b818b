"""What every kernel for products with integer weights shares: all but the kernel.

A kernel of one kind of instruction (`_gpu_mma`, `_gpu_wgmma`, `_gpu_tcgen05`) computes
the sums; here rows are padded to whole tiles before, and sums of several blocks are
added and scaled after it.
"""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._gpu import Tiles, round_up

Parts = Callable[..., jax.Array]
"""A kernel: (x, weight, scales, zeros, x_sums, x_scale, bias) and how to cut them ->
[splits, M, N]."""


def parts_by(how: str) -> Parts:
    """The kernel of an instruction: "mma", "wgmma" or "tcgen05"."""
    module = importlib.import_module(f"jcompress.kernels._gpu_{how}")
    kernel: Parts = module.parts
    return kernel


def product(
    parts: Parts,
    x: jax.Array,
    weight: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    x_scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    tiles: Tiles,
    out_dtype: Any,
    interpret: Any = None,
) -> jax.Array:
    """`bias[n] + x_scale[m] sum_k x[m, k] (weight[n, k] - zeros[n, g]) scales[n, g]`.

    Args:
        parts: the kernel.
        x: bfloat16, float16 or int8 [M, K].
        weight: int4 or int8 [N, K].
        scales: float32 [N, G].
        zeros: int8 [N, G], or None.
        x_scale: float32 [M], or None.
        bias: float32 [N], or None.
        tiles: how to cut the product.
        out_dtype: dtype of the result.
        interpret: parameters of Pallas' interpreter; None compiles. The interpreter
            lacks some instructions: see the kernel.

    Returns:
        [M, N]. No array of the weight's size is made.
    """
    count, outputs = x.shape[0], weight.shape[0]
    padded = round_up(count, tiles.rows)
    x = jnp.pad(x, ((0, padded - count), (0, 0)))
    if x_scale is not None:
        x_scale = jnp.pad(x_scale, (0, padded - count))
    whole = tiles.splits == 1
    single = scales.shape[1] == 1
    if whole:
        written = jnp.dtype(out_dtype)
    else:
        exact = single and x.dtype == jnp.int8
        written = jnp.dtype(jnp.int32 if exact else jnp.float32)
    # Integers cannot be moved by a zero point in int8, so their sums are: by the zero
    # point times the sum of the activations of the group.
    x_sums = None
    if zeros is not None and x.dtype == jnp.int8:
        x_sums = group_sums(x, scales.shape[1])
    late = (x_scale, bias) if whole else (None, None)
    found = parts(
        x, weight, scales, zeros, x_sums, *late,
        tiles=tiles, written=written, whole=whole, interpret=interpret,
    )  # fmt: skip
    if whole:
        return found.reshape(padded, outputs)[:count]
    total = jnp.sum(found[:, :count], axis=0, dtype=written)
    if single and x_sums is not None:
        assert zeros is not None
        total = total - x_sums[0, :count, None] * zeros[:, 0].astype(jnp.int32)[None]
    total = total.astype(jnp.float32)
    if single:
        total = total * scales[:, 0][None]
    if x_scale is not None:
        total = total * x_scale[:count, None]
    if bias is not None:
        total = total + bias[None]
    return total.astype(out_dtype)


def group_sums(x: jax.Array, groups: int) -> jax.Array:
    """Sums of integer activations over each group: int8 [M, K] -> int32 [G, M]."""
    cut = x.reshape(x.shape[0], groups, x.shape[1] // groups)
    return jnp.sum(cut, axis=2, dtype=jnp.int32).T

"""The parts of Pallas' Mosaic GPU dialect that the kernels share."""

import inspect
import math
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu
import jax.numpy as jnp
from jax import lax

plgpu: Any = jax.experimental.pallas.mosaic_gpu
"""The dialect. Not every supported JAX has all names that are used."""
COMPILER = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup)
ROW = plgpu.Layout.WGMMA.reduce(1)
COLUMN = plgpu.Layout.WGMMA.reduce(0)


def bits_of(dtype: Any) -> int:
    """Bits of an element of an array in a GPU's memory."""
    return 4 if dtype == jnp.int4 else jnp.dtype(dtype).itemsize * 8


def swizzled(dtype: Any, columns: int) -> tuple[Any, ...]:
    """Transforms of a shared tile whose rows are read `columns` at a time."""
    bits = bits_of(dtype)
    swizzle = plgpu.find_swizzle(columns * bits)
    tiling = plgpu.TilingTransform((8, swizzle * 8 // bits))
    return tiling, plgpu.SwizzleTransform(swizzle)


def load_vector(ref: Any, index: tuple[Any, ...], layout: Any) -> jax.Array:
    """A vector from global memory, spread over a warpgroup as `layout` says."""
    # `load` took the index as an argument of its own before JAX 0.12.
    spread = {"layout": layout, "optimized": False}
    if "idx" in inspect.signature(plgpu.load).parameters:
        vector: jax.Array = plgpu.load(ref, index, **spread)
    else:
        vector = plgpu.load(ref.at[index], **spread)
    return vector


def unpack(values: jax.Array, bits: int) -> jax.Array:
    """Stored integers as the kernel reads them; no copy: [N, K] int4 or int8."""
    if bits != 4:
        return values
    pairs = lax.bitcast_convert_type(values, jnp.int4)
    return pairs.reshape(values.shape[0], math.prod(pairs.shape[1:]))

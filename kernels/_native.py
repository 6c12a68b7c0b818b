"""The compiled kernels for CPUs: finding the library and naming its handlers to XLA.

The library is built when the package is installed, if there is a C++ compiler; without
it everything works on the forms that XLA compiles. `jcompress doctor` tells which.
"""

import contextlib
import ctypes
import functools
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.kernels._epilogue import After, Elementwise, Nonlinearity

LIBRARY = pathlib.Path(
    os.environ.get("JCOMPRESS_LIBRARY")
    or pathlib.Path(__file__).with_name("native") / "library.so"
)
"""Where the installation puts the library; JCOMPRESS_LIBRARY names another one."""

LAYOUT = 1
"""Version of the arrays' layout that the handlers and their callers agree on."""

HANDLERS = (
    "jcompress_attention",
    "jcompress_block_sparse",
    "jcompress_codebook",
    "jcompress_conv",
    "jcompress_conv_direct",
    "jcompress_dense",
    "jcompress_matmul",
    "jcompress_max_pool",
    "jcompress_nm_sparse",
    "jcompress_normalize",
    "jcompress_shared_input",
    "jcompress_unstructured_sparse",
    "jcompress_vector_codebook",
)

PLANNED = ("jcompress_conv_direct", "jcompress_matmul", "jcompress_shared_input")
"""Those of which each place in a program keeps what is the same in all calls."""

_ACTIVATIONS = (
    None,
    Nonlinearity.RELU,
    Nonlinearity.SQUARED_RELU,
    Nonlinearity.GELU,
    Nonlinearity.GELU_TANH,
    Nonlinearity.SILU,
    Nonlinearity.TANH,
    Nonlinearity.SIGMOID,
    Nonlinearity.RELU6,
)
"""At the place of each is its number in the library."""


def number_of(activation: Nonlinearity | None) -> np.int64:
    """The number of an activation in the library."""
    return np.int64(_ACTIVATIONS.index(activation))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, its handlers registered with XLA; None if it was not built."""
    if not LIBRARY.exists():
        return None
    found = ctypes.CDLL(str(LIBRARY))
    for name in HANDLERS:
        stages: Any = jax.ffi.pycapsule(getattr(found, name))
        if name in PLANNED:
            first = jax.ffi.pycapsule(getattr(found, name + "_plan"))
            stages = {"instantiate": first, "execute": stages}
        jax.ffi.register_ffi_target(name, stages, platform="cpu")
    found.jcompress_instructions.restype = ctypes.c_char_p
    found.jcompress_takes_groups.argtypes = [ctypes.c_int32, *(2 * [ctypes.c_int64])]
    return found


def register() -> None:
    """Register the handlers with XLA, if the library is there and can be loaded.

    A program that JAX has exported names its handlers and cannot load them itself.
    A library that cannot be loaded is an error where it is used, not here.
    """
    with contextlib.suppress(OSError, AttributeError):
        library()


def instructions() -> str | None:
    """Name of the instruction set that the kernels use; None without the library."""
    found = library()
    return None if found is None else found.jcompress_instructions().decode()


def missing() -> str:
    """Why the compiled kernels cannot run; empty if they can."""
    if library() is None:
        return "the compiled kernels are not installed (see `jcompress doctor`)"
    return ""


@functools.cache
def takes_groups(bits: int, inputs: int, groups: int) -> bool:
    """Whether the kernels can scale groups of inputs of this size."""
    found = library()
    return found is not None and bool(
        found.jcompress_takes_groups(bits, inputs, groups)
    )


def matmul(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    x_scale: jax.Array | None = None,
    x_zero: jax.Array | None = None,
    bias: jax.Array | None = None,
    bits: int,
    x_bits: int,
    digits: int,
    after: After | None = None,
    fixed: bool = False,
) -> jax.Array:
    """Integer products with stacked weights, `[S, M, K] x [S, N, K] -> [S, M, N]`.

    Args:
        x: float32, bfloat16, float16 or int8.
        values: as `QTensor` stores them, of 2, 3, 4 or (one byte each) 8 bits.
        scales: float32 [S, N, G].
        zeros: int8 [S, N, G] or None.
        x_scale: float32 [S, M, 1]; None for the symmetric range of each row.
        x_zero: integers in float32 [S, M, 1], or None. Needs one group and one digit.
        bias: float32 [S, N], or None.
        bits: of a stored integer.
        x_bits: of an integer that a float becomes.
        digits: int8 digits that a float becomes; several make it a fixed-point number.
            The library may then multiply floats instead, if that is faster.
        after: what follows, stacked; its bias in the place of `bias`.
        fixed: whether the weight, of groups with its scales and zeros, is a constant of
            the program: one of 4 or 8 bits is then laid out once, and kept so.

    Returns:
        The dtype of `x`; float32 if that is int8.
    """
    stacks, rows, _ = x.shape
    dtype = jnp.dtype(jnp.float32) if x.dtype == jnp.int8 else x.dtype
    out = jax.ShapeDtypeStruct((stacks, rows, scales.shape[1]), dtype)
    follows = After(Elementwise()) if after is None else after
    bias = follows.bias if bias is None else bias
    none = jnp.zeros((0,), jnp.float32)
    product: jax.Array = jax.ffi.ffi_call("jcompress_matmul", out)(
        x,
        _number_by_row(x_scale),
        _number_by_row(x_zero),
        values,
        scales,
        jnp.zeros((0,), jnp.int8) if zeros is None else zeros,
        none if bias is None else bias,
        none if follows.factor is None else follows.factor,
        none if follows.residual is None else follows.residual,
        activation=number_of(follows.then.activation),
        bits=np.int64(bits),
        x_bits=np.int64(x_bits),
        digits=np.int64(digits),
        fixed=fixed,
        layout=np.int64(LAYOUT),
    )
    return product


def shared_input(
    x: jax.Array,
    weights: Sequence[tuple[jax.Array, jax.Array, jax.Array | None, After]],
    *,
    bits: int,
    x_bits: int,
    digits: int,
    fixed: bool = False,
) -> tuple[jax.Array, ...]:
    """As `matmul`, of one `x` with several weights: [S, M, N] for each.

    Args:
        x: float32, bfloat16 or float16.
        weights: of each values, scales, zeros, and what follows: bias and activation.
            They have the same bits, as many groups, and all or none have zeros.
        bits, x_bits, digits, fixed: as for `matmul`.
    """
    stacks, rows, _ = x.shape
    none = jnp.zeros((0,), jnp.float32)
    outs = [
        jax.ShapeDtypeStruct((stacks, rows, scales.shape[1]), x.dtype)
        for _, scales, _, _ in weights
    ]
    arrays = [
        none if array is None else array
        for values, scales, zeros, after in weights
        for array in (values, scales, zeros, after.bias)
    ]
    products = jax.ffi.ffi_call("jcompress_shared_input", outs)(
        x,
        none,
        *arrays,
        activations=np.asarray(
            [_ACTIVATIONS.index(after.then.activation) for *_, after in weights],
            np.int64,
        ),
        bits=np.int64(bits),
        x_bits=np.int64(x_bits),
        digits=np.int64(digits),
        fixed=fixed,
        layout=np.int64(LAYOUT),
    )
    return tuple(products)


class Stored(NamedTuple):
    """A weight of integers, stacked.

    Attributes:
        values: [S, N, bytes], as `QTensor` stores them, of 2 to 8 bits.
        scales: float32 [S, N, G].
        zeros: int8 [S, N, G] or None.
        bits: of a stored integer.
        shape: [S, K, N], or K and N in several axes, S left out if it is 1.
    """

    values: jax.Array
    scales: jax.Array
    zeros: jax.Array | None
    bits: int
    shape: tuple[int, ...]

    @property
    def inputs(self) -> int:
        """K."""
        return math.prod(self.shape) // math.prod(self.values.shape[:2])


def dense(weights: Sequence[Stored]) -> list[jax.Array]:
    """The numbers that stored weights stand for, all of them in one call.

    Returns:
        For each weight float32, of its shape, inputs first.
    """
    shapes = [jax.ShapeDtypeStruct(one.shape, jnp.float32) for one in weights]
    none = jnp.zeros((0,), jnp.int8)
    arrays = [
        none if array is None else array
        for one in weights
        for array in (one.values, one.scales, one.zeros)
    ]
    call = jax.ffi.ffi_call("jcompress_dense", shapes, vmap_method="sequential")
    made = call(
        *arrays,
        bits=np.asarray(
            [one.bits if one.bits <= 4 else 8 for one in weights], np.int64
        ),
        layout=np.int64(LAYOUT),
    )
    return list(made)


def _number_by_row(x: jax.Array | None) -> jax.Array:
    return jnp.zeros((0,), jnp.float32) if x is None else x.reshape(x.shape[:-1])

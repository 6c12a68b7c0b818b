"""`UnstructuredSparse`: a weight of which the entries that are 0 are left out."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats.packing import unpack_codes
from jcompress.tensors.axes import from_matrix
from jcompress.tensors.matrix import MatrixTensor
from jcompress.tensors.nm_sparse import unpack_mask
from jcompress.tensors.rounding import round_to


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UnstructuredSparse(MatrixTensor):
    """A weight stored as its entries that are not 0 and a bit for each place.

    Bit `k % 8` of byte `k // 8` of a row of `mask` says that input k is kept. With `t`
    the number of kept inputs before k, and K / G inputs that share a scale:

        matrix[s, i, k] = numbers[s, starts[s, i] + t] * scales[s, i, k // (K / G)]
        numbers = values, or the two integers of each byte if values is uint8

    where k is kept, else 0, in float32, then cast to `dtype`. All matrices of a stack
    store as many numbers V; from `starts[s, -1]` on they are zeros that fill up. At
    least one is stored. Invariants, the shapes of which are checked on construction:

        values: float32, bfloat16 or int8 [*S, V],  V >= 1; or integers of 4 bits,
            uint8 [*S, V / 2], number 2 b in the low half of byte b
        mask: uint8 [*S, N, ceil(K / 8)]; 0 after bit K
        starts: int32 [*S, N + 1], starts[s, 0] = 0, none decreasing, at most V;
            starts[s, i + 1] - starts[s, i] is the number of bits of row i
        scales: float32 [*S, N, G],  K % G == 0; None for floats

    Attributes:
        values: the kept weights, output by output, in order.
        mask: which inputs they belong to.
        starts: where the numbers of each output begin, and where the last end.
        scales: the steps of each output's integers; None if `values` holds floats.

    Raises:
        ValueError: an invariant does not hold.
    """

    arrays: ClassVar[tuple[str, ...]] = ("values", "mask", "starts", "scales")

    values: jax.Array
    mask: jax.Array
    starts: jax.Array
    scales: jax.Array | None = None

    def check_arrays(self) -> None:
        """Raise ValueError if an array is not of the shape and dtype it should be."""
        *stacks, outputs, inputs = self.matrix_shape
        if self.values.ndim != len(stacks) + 1 or self.values.shape[-1] < 1:
            raise ValueError(
                f"UnstructuredSparse: values is {list(self.values.shape)}, not "
                f"[{', '.join([*map(str, stacks), 'V'])}] with V >= 1"
            )
        shape = (*stacks, self.values.shape[-1])
        kinds = (jnp.float32, jnp.bfloat16, jnp.int8, jnp.uint8)
        self.check_array("values", shape, *kinds)
        self.check_array("mask", (*stacks, outputs, -(-inputs // 8)), jnp.uint8)
        self.check_array("starts", (*stacks, outputs + 1), jnp.int32)
        whole = self.values.dtype in (jnp.int8, jnp.uint8)
        if (self.scales is None) == whole:
            raise ValueError(
                "UnstructuredSparse: int8 and uint8 values need scales, floats have "
                "none"
            )
        if self.scales is not None:
            groups = self.scales.shape[-1] if self.scales.ndim else 1
            if groups < 1 or inputs % groups:
                raise ValueError(
                    f"UnstructuredSparse: {groups} groups of scales do not divide "
                    f"{inputs} inputs"
                )
            self.check_array("scales", (*stacks, outputs, groups), jnp.float32)

    @property
    def form(self) -> str:
        """How the leaf is stored, such as "UnstructuredSparse int4 group 64"."""
        name = type(self).__name__
        if self.scales is None:
            return name
        inputs, groups = self.matrix_shape[-1], self.scales.shape[-1]
        size = f" group {inputs // groups}" if groups > 1 else ""
        return f"{name} int{4 if self.values.dtype == jnp.uint8 else 8}{size}"

    @property
    def stored_values(self) -> int:
        """How many weights are stored, of all matrices; those that fill up count."""
        each = 2 if self.values.dtype == jnp.uint8 else 1
        return int(self.values.size) * each

    def _dense(self) -> jax.Array:
        matrix = place_values(
            self.values, self.mask, self.starts, inputs=self.matrix_shape[-1]
        )
        if self.scales is None:
            matrix = matrix.astype(self.dtype)
        else:
            matrix = round_to(scaled(matrix, self.scales), self.dtype)
        return from_matrix(matrix, self.axes, self.shape)


def scaled(matrix: jax.Array, scales: jax.Array) -> jax.Array:
    """Integers times the scale of their group: [..., N, K], [..., N, G] -> float32."""
    *lead, inputs = matrix.shape
    grouped = matrix.reshape(*lead, scales.shape[-1], -1).astype(jnp.float32)
    return (grouped * scales[..., None]).reshape(*lead, inputs)


def place_values(
    values: jax.Array, mask: jax.Array, starts: jax.Array, *, inputs: int
) -> jax.Array:
    """The matrix [..., N, K] that holds the kept weights, of their dtype; not scaled.

    Args:
        values: [..., V], or uint8 [..., V / 2] for integers of 4 bits, of which int8
            are made.
        mask: uint8 [..., N, ceil(K / 8)].
        starts: int32 [..., N + 1].
        inputs: K.
    """
    if values.dtype == jnp.uint8:
        values = unpack_codes(values, 2 * values.shape[-1], 4)
    kept = unpack_mask(mask, inputs)
    before = jnp.cumsum(kept, axis=-1, dtype=jnp.int32) - kept.astype(jnp.int32)
    places = before + starts[..., :-1, None]
    last = np.int32(values.shape[-1] - 1)
    flat = jnp.minimum(places, last).reshape(*values.shape[:-1], -1)
    picked = jnp.take_along_axis(values, flat, axis=-1).reshape(kept.shape)
    return jnp.where(kept == np.uint8(1), picked, jnp.zeros((), values.dtype))


def take_values(
    matrix: np.ndarray[Any, Any],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The storage of a matrix: its entries that are not 0.

    Args:
        matrix: [*S, N, K] of any dtype, on the host.

    Returns:
        `values`, `mask` and `starts` as in `UnstructuredSparse`.
    """
    *stacks, outputs, inputs = matrix.shape
    flat = matrix.reshape(-1, outputs, inputs)
    kept = flat != 0
    starts = np.zeros((len(flat), outputs + 1), np.int64)
    np.cumsum(kept.sum(-1), axis=1, out=starts[:, 1:])
    values = np.zeros((len(flat), max(1, starts[:, -1].max(initial=0))), matrix.dtype)
    for number, each in enumerate(kept):
        values[number, : starts[number, -1]] = flat[number][each]
    mask = np.packbits(kept, axis=-1, bitorder="little")
    return (
        values.reshape(*stacks, -1),
        mask.reshape(*stacks, outputs, mask.shape[-1]),
        starts.astype(np.int32).reshape(*stacks, outputs + 1),
    )


def pack_values(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Two integers of 4 bits a byte: int8 [..., V] -> uint8 [..., ceil(V / 2)]."""
    pad = [(0, 0)] * (values.ndim - 1) + [(0, values.shape[-1] % 2)]
    low = np.pad(values, pad).astype(np.uint8) & 15
    packed: np.ndarray[Any, Any] = low[..., ::2] | low[..., 1::2] << 4
    return packed

"""`WithOutliers`: a quantized weight, and its largest numbers beside it."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.tensors.axes import from_matrix
from jcompress.tensors.base import CompressedTensor, Rebuild
from jcompress.tensors.low_rank import close_parts, open_part
from jcompress.tensors.matrix import MatrixTensor
from jcompress.tensors.qtensor import QTensor
from jcompress.tensors.ranges import InputScale
from jcompress.tensors.rounding import round_to
from jcompress.tensors.specs import Activation


def split_outliers(
    matrix: jax.Array, fraction: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Take the largest numbers out of matrices.

    Args:
        matrix: floats [*S, N, K].
        fraction: how many of the numbers of each, above 0; at least one.

    Returns:
        The matrices with 0 in their places; the places, `n K + k` in increasing order,
        int32 [*S, M]; and the numbers [*S, M].
    """
    *stacks, outputs, inputs = matrix.shape
    flat = matrix.reshape(*stacks, outputs * inputs)
    count = min(max(round(fraction * outputs * inputs), 1), outputs * inputs)
    _, places = jax.lax.top_k(jnp.abs(flat), count)
    places = jnp.sort(places.astype(jnp.int32), axis=-1)
    values = jnp.take_along_axis(flat, places, axis=-1)
    rest = jnp.put_along_axis(
        flat, places, jnp.zeros((), flat.dtype), axis=-1, inplace=False
    )
    return rest.reshape(matrix.shape), places, values


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WithOutliers(MatrixTensor):
    """A weight as small numbers and a sparse part of floats.

    With the matrix [*S, N, K] of `MatrixTensor`:

        matrix[s, n, k] = base_matrix[s, n, k] + values[s, m],  places[s, m] = n K + k

    in float32, then cast to `dtype`. Invariants, checked on construction:

        base: a QTensor of this shape, dtype and axes
        places: int32 [*S, M],  values: floats [*S, M]

    Attributes:
        base: the weight without its largest numbers.
        places: where these are, in increasing order.
        values: the numbers.

    Raises:
        ValueError: an invariant does not hold.

    References:
        Kim et al. 2023, "SqueezeLLM: Dense-and-Sparse Quantization", section 4.2.
    """

    arrays: ClassVar[tuple[str, ...]] = ("base", "places", "values")

    base: QTensor
    places: jax.Array
    values: jax.Array

    @property
    def activation(self) -> Activation | None:
        """How the data that its products meet is quantized, if at all."""
        return self.base.activation

    @property
    def input_scales(self) -> tuple[InputScale, ...]:
        """How that data becomes integers, as of `QTensor`."""
        return self.base.input_scales

    @property
    def form(self) -> str:
        """How the leaf is stored, such as "int4 + 0.5 % apart"."""
        part = (
            100 * self.places.shape[-1] / max(int(np.prod(self.matrix_shape[-2:])), 1)
        )
        return f"{self.base.form} + {part:.2g} % apart"

    def check_arrays(self) -> None:
        """Raise ValueError if a part is not of the shape and dtype it should be."""
        base = self.base
        if base.shape != self.shape or base.axes != self.axes:
            raise ValueError(
                f"WithOutliers: base is {list(base.shape)} with {base.axes}, not "
                f"{list(self.shape)} with {self.axes}"
            )
        *stacks, _, _ = self.matrix_shape
        count = self.places.shape[-1] if self.places.ndim else 0
        self.check_array("places", (*stacks, count), jnp.int32)
        floats = (jnp.float32, jnp.bfloat16, jnp.float16, np.float64)
        self.check_array("values", (*stacks, count), *floats)

    def _dense(self) -> jax.Array:
        *stacks, outputs, inputs = self.matrix_shape
        none = jnp.zeros((*stacks, outputs * inputs), self.values.dtype)
        apart = jnp.put_along_axis(
            none, self.places, self.values, axis=-1, inplace=False
        )
        whole = from_matrix(
            apart.reshape(self.matrix_shape).astype(jnp.float32), self.axes, self.shape
        )
        return round_to(self.base.dense().astype(jnp.float32) + whole, self.dtype)

    def unstack(self) -> tuple[list[jax.Array], Rebuild] | None:
        """Open the leaf for a loop over its axis 0.

        Returns:
            The arrays of its parts, each led by axis 0 of the dense array, and the
            function that makes the leaf of one slice; None unless axis 0 is a stack
            axis.
        """
        if 0 not in self.stack_axes:
            return None
        opened = [open_part(part) for part in (self.base, self.places, self.values)]

        def rebuild(slices: Sequence[jax.Array]) -> CompressedTensor:
            base, places, values = close_parts(opened, slices)
            return dataclasses.replace(
                self, base=base, places=places, values=values, **self.sliced()
            )

        return [array for arrays, _ in opened for array in arrays], rebuild

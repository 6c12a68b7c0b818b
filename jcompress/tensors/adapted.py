"""`Adapted`: a frozen weight and a trainable correction of low rank."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.tensors.base import CompressedTensor, Rebuild, is_compressed
from jcompress.tensors.low_rank import (
    Factor,
    LowRank,
    close_parts,
    dense_factor,
    open_part,
)
from jcompress.tensors.matrix import MatrixTensor
from jcompress.tensors.rounding import round_to


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Adapted(MatrixTensor):
    """A weight as a frozen base and a product of two thin matrices beside it.

    With the matrix [*S, N, K] of `MatrixTensor`:

        matrix[s] = base_matrix[s] + (alpha / R) up[s] down[s]

    in float32, then cast to `dtype`. Invariants, checked on construction:

        base: an array or a compressed leaf of this shape and dtype
        down: floats [*S, R, K],  up: floats [*S, N, R],  R >= 1
        alpha: finite, not 0

    Attributes:
        base: what is not trained.
        down: the factor that meets the data.
        up: the factor after it.
        alpha: the strength of the correction.

    Raises:
        ValueError: an invariant does not hold.

    References:
        Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section
        4.1; Dettmers et al. 2023, "QLoRA", for a quantized base.
    """

    arrays: ClassVar[tuple[str, ...]] = ("base", "down", "up")

    base: Factor
    down: jax.Array
    up: jax.Array
    alpha: float

    @property
    def rank(self) -> int:
        """R, the number of outputs of `down`."""
        return int(self.down.shape[-2])

    @property
    def scale(self) -> float:
        """alpha / R."""
        return self.alpha / self.rank

    @property
    def correction(self) -> LowRank:
        """What is added to the base, as a leaf of its own."""
        scale = jnp.asarray(self.scale, self.up.dtype)
        return LowRank(
            factors=(self.down, self.up * scale),
            shape=self.shape,
            dtype=self.dtype,
            stack_axes=self.stack_axes,
            output_axes=self.output_axes,
            input_axes=self.input_axes,
        )

    def check_arrays(self) -> None:
        """Raise ValueError if a part is not of the shape and dtype it should be."""
        *stacks, outputs, inputs = self.matrix_shape
        if tuple(self.base.shape) != self.shape or self.base.dtype != self.dtype:
            raise ValueError(
                f"Adapted: base is {self.base.dtype} {list(self.base.shape)}, not "
                f"{self.dtype} {list(self.shape)}"
            )
        floats = (jnp.float32, jnp.bfloat16, jnp.float16, np.float64)
        rank = self.down.shape[-2] if self.down.ndim > 1 else 0
        if rank < 1:
            raise ValueError(
                f"Adapted: down is {list(self.down.shape)}, not "
                f"[{', '.join([*map(str, stacks), 'R', str(inputs)])}] with R >= 1"
            )
        self.check_array("down", (*stacks, rank, inputs), *floats)
        self.check_array("up", (*stacks, outputs, rank), *floats)
        if not math.isfinite(self.alpha) or not self.alpha:
            raise ValueError(f"Adapted: alpha is finite and not 0, not {self.alpha}")

    def _dense(self) -> jax.Array:
        added = dataclasses.replace(self.correction, dtype=jnp.float32).dense()
        return round_to(dense_factor(self.base).astype(jnp.float32) + added, self.dtype)

    def unstack(self) -> tuple[list[jax.Array], Rebuild] | None:
        """Open the leaf for a loop over its axis 0.

        Returns:
            The arrays of its parts, each led by axis 0 of the dense array, and the
            function that makes the leaf of one slice; None unless axis 0 is a stack
            axis, of the base as well.
        """
        if 0 not in self.stack_axes:
            return None
        if is_compressed(self.base) and self.base.unstack() is None:
            return None
        opened = [open_part(part) for part in (self.base, self.down, self.up)]

        def rebuild(slices: Sequence[jax.Array]) -> CompressedTensor:
            base, down, up = close_parts(opened, slices)
            return dataclasses.replace(
                self, base=base, down=down, up=up, **self.sliced()
            )

        return [array for arrays, _ in opened for array in arrays], rebuild

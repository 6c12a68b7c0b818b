"""Data in two halves: what methods learn from, and what they are measured on."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.budget.amounts import examples


def parted(
    batches: Sequence[tuple[Any, ...]],
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """What methods learn from, and what their errors are measured on.

    Every other batch, or the halves of a single one: on what it was fitted to a low
    rank errs far less than elsewhere.
    """
    if len(batches) > 1:
        return list(batches[::2]), list(batches[1::2])
    (only,) = batches
    rows = examples(only)
    half = rows // 2
    if not half:
        return [only], [only]

    def part(start: int) -> tuple[Any, ...]:
        made: tuple[Any, ...] = jax.tree.map(
            lambda x: (
                x[start : start + half] if is_batch(x) and x.shape[0] == rows else x
            ),
            only,
        )
        return made

    return [part(0)], [part(half)]


def is_batch(x: Any) -> bool:
    """Whether it is an array whose first axis can number examples."""
    return bool(
        hasattr(x, "dtype")
        and x.ndim
        and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )

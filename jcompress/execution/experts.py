"""A ragged product with compressed experts, one expert after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.execution.how import How, Scaling, on_cpu
from jcompress.execution.products import LeafKernel, product_dtype, summed_dtype
from jcompress.tensors import CompressedTensor, LowRank
from jcompress.tensors.low_rank import dense_factor
from jcompress.tracing.deferred import Deferred
from jcompress.tracing.handlers import Bind
from jcompress.tracing.values import Use

BY_EXPERT = "one expert after the other"
"""How a ragged product runs on a CPU."""


def run_ragged(
    site: Any, use: Use, operand: int, inputs: list[Any], scaling: Scaling, bind: Bind
) -> list[jax.Array]:
    """A ragged product, by the best way there is on the platform.

    Args:
        site: the handler.
        use: the equation and its sites.
        operand: which of its inputs is the leaf.
        inputs: of the equation.
        scaling: of the rows, if they are quantized.
        bind: evaluates the equation.
    """
    leaf = inputs[operand]
    kernel = site.kernel(leaf.tensor, use)
    faked = site.faked(use, inputs, scaling)
    why = kernel if isinstance(kernel, str) else why_not_by_expert(use.eqn, leaf)
    if why:
        made: list[jax.Array] = site.dense(use, faked, bind, why)
        return made
    assert isinstance(kernel, LeafKernel)
    factored = isinstance(leaf.tensor, LowRank)
    if on_cpu():
        site.note(use, inputs, kernel.how, BY_EXPERT)
    elif factored:
        site.note(use, inputs, kernel.how)
    else:
        why = f"there is no kernel for `{use.eqn.primitive.name}` on this platform"
        site.note(use, inputs, How.DENSE, why)
    x, sizes = inputs[0] if kernel.quantizes else faked[0], inputs[2]
    scale, zero = None, None
    if kernel.quantizes and not kernel.own_range and scaling is not None:
        scale, zero = (
            None if p is None else jnp.broadcast_to(p, (x.shape[0], 1)) for p in scaling
        )
    out: jax.Array = jax.lax.platform_dependent(
        cpu=lambda: by_expert(
            (x, scale, zero),
            sizes,
            leaf.tensor,
            kernel.multiply,
            use.eqn.outvars[0].aval.dtype,
        ),
        default=lambda: (
            by_factor(faked[0], sizes, leaf.tensor, use.eqn)
            if factored
            else bind([faked[0], leaf.dense(), sizes])[0]
        ),
    )
    return [out]


def why_not_by_expert(eqn: Any, leaf: Deferred) -> str:
    """Why a ragged product cannot go expert by expert; "" if it can."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    plain = (
        tuple(map(tuple, numbers.dot_dimension_numbers[0])) == ((1,), (1,))
        and not any(numbers.dot_dimension_numbers[1])
        and tuple(numbers.lhs_ragged_dimensions) == (0,)
        and tuple(numbers.rhs_group_dimensions) == (0,)
    )
    if not plain or not leaf.only_cast:
        return "the product is not rows [M, K] by experts [G, K, N]"
    axes = getattr(leaf.tensor, "axes", None)
    if axes is None or tuple(axes) != ((0,), (2,), (1,)):
        return "the leaf is not stored as a matrix for each expert"
    return ""


def by_expert(
    rows: tuple[jax.Array, *tuple[jax.Array | None, ...]],
    sizes: jax.Array,
    tensor: CompressedTensor,
    multiply: Callable[..., jax.Array],
    dtype: Any,
) -> jax.Array:
    """Multiply each group of rows by the matrix of its expert.

    Experts without rows are skipped; the others multiply all rows, of which those of
    the group are kept.

    Args:
        rows: arrays [M, ...] with an entry for each row; None for one left out.
        sizes: integers [G]: how many rows, in order, belong to each expert.
        tensor: the experts [G, K, N]; axis 0 leads its storage.
        multiply: `multiply(*rows, expert) -> [M, N]`.
        dtype: of the result.

    Returns:
        [M, N]; rows beyond the last group are 0.
    """
    opened = tensor.unstack()
    assert opened is not None
    arrays, rebuild = opened
    ends = jnp.cumsum(sizes)
    numbers = jnp.arange(rows[0].shape[0], dtype=ends.dtype)[:, None]

    def step(total: jax.Array, given: Any) -> tuple[jax.Array, None]:
        start, end, slices = given

        def multiplied(total: jax.Array) -> jax.Array:
            product = multiply(*rows, rebuild(slices)).astype(dtype)
            return jnp.where((numbers >= start) & (numbers < end), product, total)

        return jax.lax.cond(end > start, multiplied, lambda same: same, total), None

    outputs = tensor.shape[2]
    start = jnp.zeros((rows[0].shape[0], outputs), dtype)
    total, _ = jax.lax.scan(step, start, (ends - sizes, ends, list(arrays)))
    return total


def by_factor(x: jax.Array, sizes: jax.Array, tensor: LowRank, eqn: Any) -> jax.Array:
    """Multiply each group of rows by the factors of its expert, all experts at once.

    Args:
        x: rows [M, K].
        sizes: integers [G]: how many rows, in order, belong to each expert.
        tensor: the experts [G, K, N].
        eqn: the ragged product; its dtypes and its precision hold for each factor.

    Returns:
        [M, N]; rows beyond the last group are 0.
    """
    dtype = product_dtype(eqn)
    for factor in tensor.factors:
        x = jax.lax.ragged_dot(
            x.astype(dtype),
            jnp.swapaxes(dense_factor(factor).astype(dtype), 1, 2),
            sizes,
            precision=eqn.params["precision"],
            preferred_element_type=summed_dtype(dtype),
        )
    return x.astype(eqn.outvars[0].aval.dtype)

"""The inputs of a weight settled in turn, the rest making up for the errors.

What GPTQ, which rounds weights, and SparseGPT, which removes them, have in common.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import NumberFormat

BLOCK = 16
"""Inputs that are settled between two products: their errors stay in the cache."""

_CHUNK = 1024
"""Inputs that are settled by one compiled loop."""

_MOST_CHUNKS = 8
"""Loops that are compiled at most, each for its own number of inputs before it."""


class Block(NamedTuple):
    """Some inputs in a row, u of them, of a weight with N outputs.

    Attributes:
        w: the weights as they were given, float32 [u, N].
        wanted: those with what the errors of all inputs before the block add to them.
        factor: what the error of one of these inputs (column) adds to a later one
            (row), [u, u].
        parts: what the caller knows of each input, a tree of arrays [u, ...].
    """

    w: jax.Array
    wanted: jax.Array
    factor: jax.Array
    parts: Any


Settle = Callable[[Block], tuple[jax.Array, jax.Array]]
"""What a block becomes: an array [u, N] to be collected, and the errors [u, N], the
weights given less those that they become."""


def settle_in_turn(
    w: jax.Array,
    factor: jax.Array,
    parts: Any,
    *,
    sizes: Sequence[int],
    settle: Settle,
    enter: Callable[[Block], Any] | None = None,
) -> jax.Array:
    """Settle all inputs of a weight, block by block.

    With H the second moments of the inputs, `H = T^T T` and T lower triangular, the
    error of an output is `|T (w - w')|^2`. The term of input i holds the errors
    e = w - w' of the inputs up to it, so that its own makes up for those before it if
    it becomes what is nearest to

        w[i] + sum over j < i of e[j] T[i, j] / T[i, i]

    Args:
        w: the weights, inputs first and in the order in which they are settled, float32
            [K, N]; `sizes[0]` divides K.
        factor: `T[i, j] / T[i, i]` for j < i, else 0, float32 [K, K].
        parts: a tree of arrays that lead with K.
        sizes: inputs of a block, and, each a divisor of the one before it, of the
            blocks in it. A product adds the errors before a block; `settle` has to add
            those inside of the smallest ones.
        settle: called for each of the smallest blocks, in their order.
        enter: gives other `parts` for each of the largest blocks, when all before it
            are settled.

    Returns:
        What `settle` gave to be collected, [K, N].
    """
    inputs, outputs = w.shape
    made = jnp.zeros((0, outputs), jnp.float32)
    errors = made
    size = sizes[0]
    least = max(_CHUNK, -(-inputs // _MOST_CHUNKS))
    chunk = -(-least // size) * size
    for start in range(0, inputs, chunk):
        own = slice(start, min(start + chunk, inputs))
        # What the chunks before make of these inputs, in one product.
        base = w[own] + jnp.matmul(factor[own, :start], errors, precision="highest")
        mine = jax.tree.map(operator.itemgetter(own), parts)
        some = Block(w[own], base, factor[own, own], mine)
        found, more = _within(some, tuple(sizes), settle, enter)
        made = jnp.concatenate([made, found])
        errors = jnp.concatenate([errors, more])
    return made


def _within(
    whole: Block,
    sizes: tuple[int, ...],
    settle: Settle,
    enter: Callable[[Block], Any] | None,
) -> tuple[jax.Array, jax.Array]:
    """What `settle` collects of a block cut into smaller ones, and the errors."""
    size = sizes[0]

    def block(
        number: jax.Array, state: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        made, errors = state
        start = number * size

        def part(x: jax.Array) -> jax.Array:
            own: jax.Array = jax.lax.dynamic_slice_in_dim(x, start, size, 0)
            return own

        own = Block(
            part(whole.w),
            part(whole.wanted)
            + jnp.matmul(part(whole.factor), errors, precision="highest"),
            jax.lax.dynamic_slice(whole.factor, (start, start), (size, size)),
            jax.tree.map(part, whole.parts),
        )
        if enter is not None:
            own = own._replace(parts=enter(own))
        if len(sizes) > 1:
            found, lost = _within(own, sizes[1:], settle, None)
        else:
            found, lost = settle(own)
        return (
            jax.lax.dynamic_update_slice_in_dim(made, found, start, 0),
            jax.lax.dynamic_update_slice_in_dim(errors, lost, start, 0),
        )

    nothing = jnp.zeros_like(whole.w)
    if len(whole.w) == size:
        return block(jnp.int32(0), (nothing, nothing))
    result: tuple[jax.Array, jax.Array] = jax.lax.fori_loop(
        0, len(whole.w) // size, block, (nothing, nothing)
    )
    return result


class Grid(NamedTuple):
    """What each weight of some inputs may become, all [u, N].

    Attributes:
        scale: the steps of the numbers; None for weights that are not rounded.
        zero: the number that stands for 0; None if that is 0.
        keep: which weights stay, the others becoming 0; None for all.
    """

    scale: jax.Array | None = None
    zero: jax.Array | None = None
    keep: jax.Array | None = None


def _became(
    target: jax.Array, grid: Grid, format: NumberFormat | None
) -> tuple[jax.Array, jax.Array]:
    """The numbers and the values [N] of what one input wants to be."""
    number = value = target
    if format is not None:
        assert grid.scale is not None
        number = format.round(target * (np.float32(1) / grid.scale), grid.zero)
        value = (number if grid.zero is None else number - grid.zero) * grid.scale
    if grid.keep is not None:
        nothing = jnp.zeros_like(target) if grid.zero is None else grid.zero
        number = jnp.where(grid.keep, number, nothing)
        value = jnp.where(grid.keep, value, np.float32(0))
    return number, value


def one_by_one(
    block: Block, grid: Grid, format: NumberFormat | None
) -> tuple[jax.Array, jax.Array]:
    """Round, keep or remove the weights of a block, one input after the other.

    Returns:
        Numbers of the format in float32, or the weights themselves without a format;
        and the errors.
    """

    def step(
        i: jax.Array | int, now: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        found, made = now
        target = block.wanted[i] + jnp.sum(block.factor[i][:, None] * made, axis=0)
        number, value = _became(target, jax.tree.map(lambda x: x[i], grid), format)
        return found.at[i].set(number), made.at[i].set(block.w[i] - value)

    nothing = jnp.zeros_like(block.w)
    result: tuple[jax.Array, jax.Array] = jax.lax.fori_loop(
        0, len(block.w), step, (nothing, nothing)
    )
    return result


def damped(moments: jax.Array, damping: jax.Array | float) -> jax.Array:
    """Moments [K, K] that can be factored.

    Args:
        moments: the sum of x x^T over the inputs, up to a factor.
        damping: what is added to the diagonal, as a fraction of its mean. Inputs that
            are always 0 count as those of mean size.
    """
    size = jnp.diagonal(moments)
    mean = jnp.mean(size)
    usual = jnp.where(mean > 0, mean, np.float32(1))
    extra = jnp.asarray(damping, jnp.float32) * usual + jnp.where(
        size > 0, np.float32(0), usual
    )
    return moments + jnp.diag(extra)


def factored(
    moments: jax.Array, order: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The factor that `settle_in_turn` takes, and the diagonal of T.

    With J the reversal of all inputs, `J H J = L L^T` gives `T = J L^T J`.

    Args:
        moments: [K, K], positive definite.
        order: of the inputs; None for their own.
    """
    if order is None:
        reverse = moments[::-1, ::-1]
    else:
        back = order[::-1]
        reverse = moments[back][:, back]
    lower = jnp.linalg.cholesky(reverse)
    t = lower.T[::-1, ::-1]
    pivots = jnp.diagonal(t)
    factor = t / pivots[:, None] - jnp.eye(len(t), dtype=t.dtype)
    return factor, pivots


def left_over(
    moments: jax.Array, damping: float, order: jax.Array | None = None
) -> jax.Array:
    """What a squared error of each input counts when all later ones made up for it.

    Args:
        moments: float32 [K, K].
        damping: as of `damped`.
        order: of the inputs; None for their own.

    Returns:
        float32 [K], the squares of T's diagonal.
    """
    _, pivots = factored(damped(moments, damping), order)
    squares = jnp.square(pivots)
    return squares if order is None else jnp.zeros_like(pivots).at[order].set(squares)

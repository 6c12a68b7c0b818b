"""SparseGPT: remove weights input by input, later ones making up for the errors."""

import dataclasses
import functools
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import NumberFormat
from jcompress.pruning._selection import keep_highest_compiled
from jcompress.pruning.one_shot._current import block_inverses, current
from jcompress.pruning.one_shot.base import Method, rounded_by
from jcompress.pruning.patterns import NM, Pattern, Unstructured
from jcompress.rounding import Rounded
from jcompress.rounding.copies import over_copies, spread
from jcompress.rounding.in_turn import (
    BLOCK,
    Block,
    Grid,
    damped,
    factored,
    one_by_one,
    settle_in_turn,
)
from jcompress.tensors.specs import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseGpt(Method):
    """Inputs lose weights one after the other, the rest making up for the errors.

    A weight is removed where `w^2 / [H^-1]_ii` is small, with w what it has become by
    then and H the moments of this input and those after it: of single weights the same
    number in every block of inputs, over all outputs; of N:M, in every group. What
    stays can be rounded in the same pass.

    Attributes:
        damping: what is added to the diagonal of the second moments, as a fraction of
            its mean, above 0; more trusts the data less.
        block: inputs whose single weights are compared together, a multiple of 16.

    Raises:
        ValueError: `damping` is not above 0 and finite, or `block` is no positive
            multiple of 16.

    References:
        Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately
        Pruned in One-Shot", algorithm 1, section 3.3 (N:M) and 3.5 (with rounding).
    """

    rounds: ClassVar[bool] = True
    patterns: ClassVar[tuple[type[Pattern], ...]] = (Unstructured, NM)

    damping: float = 0.01
    block: int = 128

    def __post_init__(self) -> None:
        check_damping("SparseGpt", self.damping)
        whole = isinstance(self.block, int) and not isinstance(self.block, bool)
        if not whole or self.block < BLOCK or self.block % BLOCK:
            raise ValueError(
                f"SparseGpt: block is a positive multiple of {BLOCK}, not "
                f"{self.block!r}"
            )

    def prune(
        self,
        matrix: jax.Array,
        pattern: Pattern,
        sparsity: float,
        moments: jax.Array | None,
    ) -> jax.Array:
        """The matrix, less the weights that were removed."""
        assert moments is not None
        if 0 in matrix.shape:
            return matrix
        run = functools.partial(
            _one, spec=self, pattern=pattern, sparsity=sparsity, format=None
        )
        made: jax.Array = over_copies(run, matrix, None, None, moments)
        return made

    def prune_and_round(
        self,
        matrix: jax.Array,
        pattern: Pattern,
        sparsity: float,
        moments: jax.Array | None,
        weights: Weights,
    ) -> Rounded:
        """Numbers, with scales for the weights that stay without rounding."""
        assert moments is not None
        run = functools.partial(
            _one, spec=self, pattern=pattern, sparsity=sparsity, format=weights.format
        )
        staying = self.prune(matrix, pattern, sparsity, moments)
        return rounded_by(
            run, matrix, moments, weights, staying=staying, damping=self.damping
        )


_FEW = 16


def check_damping(name: str, damping: float) -> None:
    """Raise ValueError unless it is a positive, finite number."""
    number = isinstance(damping, int | float) and math.isfinite(damping)
    if not number or damping <= 0:
        raise ValueError(f"{name}: damping is above 0, not {damping!r}")


class _Parts(NamedTuple):
    """What is known of each input.

    Attributes:
        pivot: the diagonal of T, [u].
        inverse: a row of the inverse of its block, [u, size].
        quota: how many weights its block loses, int32 [u].
        exists: False for inputs that fill up the last block, [u].
        grid: what its weights may become.
    """

    pivot: jax.Array
    inverse: jax.Array
    quota: jax.Array
    exists: jax.Array
    grid: Grid


@functools.partial(jax.jit, static_argnames=("spec", "pattern", "sparsity", "format"))
def _one(
    matrix: jax.Array,
    scales: jax.Array | None,
    zeros: jax.Array | None,
    moments: jax.Array,
    *,
    spec: SparseGpt,
    pattern: Pattern,
    sparsity: float,
    format: NumberFormat | None,
) -> jax.Array:
    """One matrix [N, K]: the weights that are left, or their numbers in float32."""
    outputs, inputs = matrix.shape
    factor, pivot = factored(damped(moments.astype(jnp.float32), spec.damping))
    if isinstance(pattern, NM):
        size, sizes = pattern.m, (max(BLOCK // pattern.m, 1) * pattern.m, pattern.m)
    else:
        size, sizes = spec.block, (spec.block, BLOCK)
    short = -inputs % sizes[0]

    def led(x: jax.Array, fill: float = 0) -> jax.Array:
        """Inputs lead: those of a block lie side by side."""
        return jnp.pad(x.T, ((0, short), (0, 0)), constant_values=fill)

    factor = jnp.pad(factor, ((0, short), (0, short)))
    grid = Grid()
    if scales is not None:
        zero = None if zeros is None else led(spread(zeros, outputs, inputs))
        grid = Grid(led(spread(scales, outputs, inputs), 1), zero)
    parts = _Parts(
        pivot=jnp.pad(pivot, (0, short), constant_values=1),
        inverse=block_inverses(factor, size),
        quota=jnp.asarray(_quotas(outputs, inputs, inputs + short, size, sparsity)),
        exists=jnp.arange(inputs + short) < inputs,
        grid=grid,
    )

    def by_group(block: Block) -> tuple[jax.Array, jax.Array]:
        assert isinstance(pattern, NM)
        parts: _Parts = block.parts
        keep = _highest(_scores(block), pattern.n)
        return one_by_one(block, parts.grid._replace(keep=keep), format)

    def by_block(block: Block) -> _Parts:
        parts: _Parts = block.parts
        scores = jnp.where(parts.exists[:, None], _scores(block), jnp.inf)
        keep = keep_highest_compiled(scores.reshape(1, -1), parts.quota[0])
        # Rows of the inverse are as long as a block, and of no use inside of one.
        return parts._replace(grid=parts.grid._replace(keep=keep.reshape(scores.shape)))

    grouped = isinstance(pattern, NM)
    made = settle_in_turn(
        led(matrix.astype(jnp.float32)),
        factor,
        parts,
        sizes=sizes,
        settle=by_group
        if grouped
        else lambda block: one_by_one(block, block.parts.grid, format),
        enter=None if grouped else by_block,
    )
    return made[:inputs].T


def _scores(block: Block) -> jax.Array:
    """What removing each weight costs, given the errors before the block: [u, N]."""
    parts: _Parts = block.parts
    now = current(block, parts.inverse)
    return jnp.square(now * parts.pivot[:, None])


def _highest(scores: jax.Array, count: int) -> jax.Array:
    """The highest scores of each column [u], of equal ones the last, True: [u, N].

    Pair by pair for a few, so that one loop goes through the columns.
    """
    if len(scores) > _FEW:
        return keep_highest_compiled(scores.T, len(scores) - count).T
    above = [jnp.zeros(scores.shape[1:], jnp.int32) for _ in scores]
    for late in range(len(scores)):
        for early in range(late):
            lower = (scores[early] <= scores[late]).astype(jnp.int32)
            above[early] += lower
            above[late] += 1 - lower
    return jnp.stack(above) < count


def _quotas(
    outputs: int, inputs: int, padded: int, size: int, sparsity: float
) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """How many weights the block of each input loses: in all `sparsity` of them."""
    ends = np.minimum(np.arange(0, padded + size, size), inputs)
    gone = np.rint(sparsity * outputs * ends)
    return np.repeat(np.diff(gone), size)[:padded].astype(np.int32)

"""The N:M pattern of least error, group after group."""

import dataclasses
import functools
import itertools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.pruning.one_shot._current import block_inverses, current
from jcompress.pruning.one_shot.base import Method
from jcompress.pruning.one_shot.sparse_gpt import check_damping
from jcompress.pruning.patterns import NM, Pattern
from jcompress.rounding.copies import over_copies
from jcompress.rounding.in_turn import (
    BLOCK,
    Block,
    damped,
    factored,
    settle_in_turn,
)
from jcompress.rounding.solving import solve_each

_MOST = 512
"""Patterns of a group that are tried."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimalNM(Method):
    """Each group of N:M loses the weights whose removal together errs least.

    All ways to keep n of m weights are tried, with the best values for what stays in
    the group and for all inputs after it. `SparseGpt` adds up what each weight would
    cost by itself, and lets only later inputs make up for it.

    Attributes:
        damping: what is added to the diagonal of the second moments, as a fraction of
            its mean, above 0; more trusts the data less.

    Raises:
        ValueError: `damping` is not above 0 and finite.

    References:
        Frantar et al. 2022, "Optimal Brain Compression", equation 4: the error and the
        update for weights that are removed together.
    """

    patterns: ClassVar[tuple[type[Pattern], ...]] = (NM,)

    damping: float = 0.01

    def __post_init__(self) -> None:
        check_damping("OptimalNM", self.damping)

    def prune(
        self,
        matrix: jax.Array,
        pattern: Pattern,
        sparsity: float,
        moments: jax.Array | None,
    ) -> jax.Array:
        """The matrix with n of every m weights left.

        Raises:
            MismatchError: a group has too many patterns to try them all.
        """
        assert moments is not None
        assert isinstance(pattern, NM)
        count = math.comb(pattern.m, pattern.n)
        if count > _MOST:
            raise MismatchError(
                f"OptimalNM: {pattern!r} has {count} ways to keep {pattern.n} of "
                f"{pattern.m}, and at most {_MOST} are tried; use SparseGpt()"
            )
        if 0 in matrix.shape:
            return matrix
        run = functools.partial(_one, pattern=pattern, damping=self.damping)
        made: jax.Array = over_copies(run, matrix, moments)
        return made


@functools.partial(jax.jit, static_argnames=("pattern", "damping"))
def _one(
    matrix: jax.Array, moments: jax.Array, *, pattern: NM, damping: float
) -> jax.Array:
    """One matrix [N, K] with its groups pruned."""
    inputs = matrix.shape[1]
    m = pattern.m
    factor, pivot = factored(damped(moments.astype(jnp.float32), damping))
    sizes = (max(BLOCK // m, 1) * m, m)
    short = -inputs % sizes[0]
    factor = jnp.pad(factor, ((0, short), (0, short)))
    inverse = block_inverses(factor, m)
    pivot = jnp.pad(pivot, (0, short), constant_values=1)
    ways = list(itertools.combinations(range(m), m - pattern.n))
    gone = np.zeros((len(ways), m), bool)
    for number, removed in enumerate(ways):
        gone[number, list(removed)] = True

    def group(block: Block) -> tuple[jax.Array, jax.Array]:
        inverse, pivot = block.parts
        now = current(block, inverse)
        # That of the moments of this input and those after it, on the group.
        root = inverse / pivot[None, :]
        covariance = jnp.matmul(root, root.T, precision="highest")
        # [ways, m, m]: the inverse of its part for the weights that go, else 0.
        both = jnp.asarray(gone[:, :, None] & gone[:, None, :])
        alone = jnp.asarray(np.eye(m, dtype=np.float32) * ~gone[:, :, None])
        cut = jnp.where(both, covariance[None], alone)
        identity = jnp.broadcast_to(jnp.eye(m, dtype=cut.dtype), cut.shape)
        cost = jnp.where(both, solve_each(cut, identity), np.float32(0))
        through = jnp.einsum("pij,jn->pin", cost, now, precision="highest")
        lost = jnp.sum(through * now[None], axis=1)
        best = jnp.argmin(lost, axis=0)
        chosen = jnp.take_along_axis(through, best[None, None, :], axis=0)[0]
        moved = now - jnp.matmul(covariance, chosen, precision="highest")
        kept = ~jnp.asarray(gone)[best].T
        value = jnp.where(kept, moved, np.float32(0))
        return value, block.w - value

    made = settle_in_turn(
        jnp.pad(matrix.astype(jnp.float32).T, ((0, short), (0, 0))),
        factor,
        (inverse, pivot),
        sizes=sizes,
        settle=group,
    )
    return made[:inputs].T

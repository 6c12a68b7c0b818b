"""Optimal Brain Surgeon, output by output: one weight after the other, exactly."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.pruning._selection import keep_highest_compiled
from jcompress.pruning.one_shot.base import Method
from jcompress.pruning.one_shot.least_squares import descended
from jcompress.pruning.one_shot.sparse_gpt import check_damping
from jcompress.pruning.patterns import NM, Pattern, Unstructured
from jcompress.rounding.copies import over_copies
from jcompress.rounding.in_turn import damped

_STEPS = 64
"""Of the equations for what stays; see `LeastSquares`."""

_TOGETHER = 2**22
"""Numbers in the matrices that are worked on together."""

_LEAST = np.finfo(np.float32).tiny


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimalBrainSurgeon(Method):
    """The weight that costs least goes, all others make up for it; and so on.

    Each output has the inverse of its own moments, from which what was removed is taken
    out. Single weights are taken from all outputs of a matrix in the order of their
    costs, so that outputs need not lose the same number; of N:M, as long as a group
    has more than n left. In the end the weights that stay get their best values.

    For small layers: it takes N K^3 multiplications for N outputs and K inputs.

    Attributes:
        damping: what is added to the diagonal of the second moments, as a fraction of
            its mean, above 0; more trusts the data less.

    Raises:
        ValueError: `damping` is not above 0 and finite.

    References:
        Hassibi and Stork 1992, "Second Order Derivatives for Network Pruning: Optimal
        Brain Surgeon".
        Frantar et al. 2022, "Optimal Brain Compression: A Framework for Accurate
        Post-Training Quantization and Pruning", algorithm 1 and section 4 (ExactOBS).
    """

    patterns: ClassVar[tuple[type[Pattern], ...]] = (Unstructured, NM)

    damping: float = 0.01

    def __post_init__(self) -> None:
        check_damping("OptimalBrainSurgeon", self.damping)

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
            _one, pattern=pattern, sparsity=sparsity, damping=self.damping
        )
        made: jax.Array = over_copies(run, matrix, moments)
        return made


@functools.partial(jax.jit, static_argnames=("pattern", "sparsity", "damping"))
def _one(
    matrix: jax.Array,
    moments: jax.Array,
    *,
    pattern: Pattern,
    sparsity: float,
    damping: float,
) -> jax.Array:
    """One matrix [N, K]."""
    outputs, inputs = matrix.shape
    matrix = matrix.astype(jnp.float32)
    h = damped(moments.astype(jnp.float32), damping)
    factor = jax.scipy.linalg.cho_factor(h, lower=True)
    inverse = jax.scipy.linalg.cho_solve(factor, jnp.eye(inputs, dtype=h.dtype))
    group, most = inputs, inputs
    if isinstance(pattern, NM):
        group, most = pattern.m, pattern.m - pattern.n
    steps = inputs // group * most

    def trace(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The inputs of an output in the order of their removal, and their costs."""

        def step(state: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            w, inverse, alive = state
            gone = jnp.sum(~alive.reshape(-1, group), axis=1, dtype=jnp.int32)
            free = alive & jnp.repeat(gone < most, group, total_repeat_length=inputs)
            # Rounding may leave nothing, or less, of a small one.
            size = jnp.maximum(jnp.diagonal(inverse), _LEAST)
            cost = jnp.minimum(jnp.square(w) / size, np.finfo(np.float32).max)
            cost = jnp.where(free, cost, jnp.inf)
            chosen = jnp.argmin(cost)
            column = inverse[chosen]
            share = column / size[chosen]
            w = w - w[chosen] * share
            inverse = inverse - column[:, None] * share[None, :]
            alive = alive.at[chosen].set(False)
            return (w, inverse, alive), (chosen, cost[chosen])

        start = (w, inverse, jnp.ones(inputs, bool))
        _, found = jax.lax.scan(step, start, None, length=steps)
        places, costs = found
        return places, costs

    together = max(1, _TOGETHER // h.size)
    places, costs = jax.lax.map(trace, matrix, batch_size=together)
    if isinstance(pattern, NM):
        removed = jnp.ones(places.shape, bool)
    else:
        # A weight goes when all have that its output loses before.
        highest = jax.lax.cummax(jnp.maximum(costs, 0), axis=1)
        count = pattern.count(sparsity, matrix.size)
        kept = keep_highest_compiled(highest.reshape(1, -1), count)
        removed = ~kept.reshape(costs.shape)
    rows = jnp.arange(outputs)[:, None]
    keep = jnp.ones(matrix.shape, bool).at[rows, places].set(~removed)
    left = jnp.where(keep, matrix, np.float32(0))
    return descended(matrix, left, h, steps=_STEPS)

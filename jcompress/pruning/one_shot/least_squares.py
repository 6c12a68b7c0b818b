"""The best values of the weights that stay, whichever these are."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import NumberFormat
from jcompress.pruning.one_shot.base import Method, rounded_by
from jcompress.pruning.one_shot.scored import Wanda
from jcompress.pruning.one_shot.sparse_gpt import check_damping
from jcompress.pruning.patterns import Pattern
from jcompress.rounding import Rounded
from jcompress.rounding.copies import over_copies, spread
from jcompress.rounding.in_turn import (
    BLOCK,
    Grid,
    damped,
    factored,
    one_by_one,
    settle_in_turn,
)
from jcompress.tensors.specs import Weights

_WANDA = Wanda()
_SOLVED = 1e-11
"""Of the squared residual of the beginning, what is no better than float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastSquares(Method):
    """What another method keeps gets the values of least error.

    The error of an output is quadratic in its weights, so that the best values of those
    that stay solve linear equations, `H_SS w'_S = (H w)_S` for the set S of an output.
    They are solved by steps of conjugate gradients for all outputs at once, from the
    weights that the method made, and never err more than these. What stays can then be
    rounded by GPTQ among itself, in the same pass.

    Attributes:
        start: the method that says which weights stay.
        damping: what is added to the diagonal of the second moments, as a fraction of
            its mean, above 0; more stays nearer to the weights as they were given.
        steps: of conjugate gradients; outputs that are solved before stay.

    Raises:
        TypeError: `start` is no method.
        ValueError: `damping` is not above 0 and finite, or `steps` is no positive int.

    References:
        Boza 2024, "Fast and Effective Weight Update for Pruned Large Language Models":
        the problem, solved there by ADMM.
    """

    rounds: ClassVar[bool] = True

    start: Method = _WANDA
    damping: float = 0.01
    steps: int = 32

    def __post_init__(self) -> None:
        if not isinstance(self.start, Method):
            raise TypeError(
                "LeastSquares: start is a method of jcompress.pruning.one_shot, such "
                f"as Wanda(), not {self.start!r}"
            )
        check_damping("LeastSquares", self.damping)
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool)
        if not whole or self.steps < 1:
            raise ValueError(
                f"LeastSquares: steps is a positive int, not {self.steps!r}"
            )

    def takes(self, pattern: Pattern) -> bool:
        """Whether the first method can make a pattern."""
        return self.start.takes(pattern)

    def prune(
        self,
        matrix: jax.Array,
        pattern: Pattern,
        sparsity: float,
        moments: jax.Array | None,
    ) -> jax.Array:
        """The matrix with the zeros of the first method."""
        assert moments is not None
        first = self.start.prune(matrix, pattern, sparsity, moments)
        if 0 in matrix.shape:
            return first
        run = functools.partial(refitted, spec=self)
        made: jax.Array = over_copies(run, matrix, first, moments)
        return made

    def prune_and_round(
        self,
        matrix: jax.Array,
        pattern: Pattern,
        sparsity: float,
        moments: jax.Array | None,
        weights: Weights,
    ) -> Rounded:
        """Numbers of the fitted weights, each making up for the errors before it."""
        assert moments is not None
        fitted = self.prune(matrix, pattern, sparsity, moments)
        run = functools.partial(_rounded, format=weights.format, damping=self.damping)
        return rounded_by(
            run, fitted, moments, weights, staying=fitted, damping=self.damping
        )


@functools.partial(jax.jit, static_argnames=("format", "damping"))
def _rounded(
    matrix: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    moments: jax.Array,
    *,
    format: NumberFormat,
    damping: float,
) -> jax.Array:
    """The numbers [N, K] of one matrix, whose zeros stay zero."""
    outputs, inputs = matrix.shape
    factor, _ = factored(damped(moments.astype(jnp.float32), damping))
    short = -inputs % BLOCK

    def led(x: jax.Array, fill: float = 0) -> jax.Array:
        """Inputs lead: those of a block lie side by side."""
        return jnp.pad(x.T, ((0, short), (0, 0)), constant_values=fill)

    matrix = matrix.astype(jnp.float32)
    grid = Grid(
        led(spread(scales, outputs, inputs), 1),
        None if zeros is None else led(spread(zeros, outputs, inputs)),
        led(matrix) != 0,
    )
    numbers = settle_in_turn(
        led(matrix),
        jnp.pad(factor, ((0, short), (0, short))),
        grid,
        sizes=(BLOCK,),
        settle=lambda block: one_by_one(block, block.parts, format),
    )
    return numbers[:inputs].T


@functools.partial(jax.jit, static_argnames="spec")
def refitted(
    matrix: jax.Array, first: jax.Array, moments: jax.Array, *, spec: LeastSquares
) -> jax.Array:
    """The weights [N, K] of least error that are 0 where `first` is."""
    h = damped(moments.astype(jnp.float32), spec.damping)
    return descended(matrix, first, h, steps=spec.steps)


def descended(
    matrix: jax.Array, first: jax.Array, h: jax.Array, *, steps: int
) -> jax.Array:
    """Conjugate gradients for all outputs at once, preconditioned by the diagonal.

    Args:
        matrix: the weights as they were given, float32 [N, K].
        first: those to begin with, 0 where nothing stays.
        h: the moments, float32 [K, K], positive definite.
        steps: at most so many.

    Returns:
        float32 [N, K], 0 where `first` is.
    """
    keep = first != 0
    inverse = (1 / jnp.diagonal(h))[None, :]

    def through(x: jax.Array) -> jax.Array:
        return jnp.where(keep, jnp.matmul(x, h, precision="highest"), np.float32(0))

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axis=1, keepdims=True)

    left = through(matrix - first)
    scaled = left * inverse
    begun = dot(left, scaled)
    # What is left then is the error of the sums, and further steps would follow it.
    least = begun * np.float32(_SOLVED)

    def step(_: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        found, left, way, size = state
        passed = through(way)
        under = dot(way, passed)
        going = (size > least) & (under > 0)
        far = jnp.where(going, size / jnp.where(going, under, 1), 0)
        found, left = found + far * way, left - far * passed
        scaled = left * inverse
        after = dot(left, scaled)
        turn = jnp.where(going, after / jnp.where(going, size, 1), 0)
        return found, left, scaled + turn * way, after

    found: jax.Array = jax.lax.fori_loop(0, steps, step, (first, left, scaled, begun))[
        0
    ]
    return found

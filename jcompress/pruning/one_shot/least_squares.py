"""The best values of the weights that stay, whichever these are."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.pruning.one_shot.base import Method
from jcompress.pruning.one_shot.scored import Wanda
from jcompress.pruning.one_shot.sparse_gpt import check_damping
from jcompress.pruning.patterns import Pattern
from jcompress.rounding.copies import over_copies
from jcompress.rounding.in_turn import damped

_WANDA = Wanda()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastSquares(Method):
    """What another method keeps gets the values of least error.

    The error of an output is quadratic in its weights, so that the best values of those
    that stay solve linear equations, `H_SS w'_S = (H w)_S` for the set S of an output.
    Up to `exact` inputs they are solved by Cholesky's factors, one output after the
    other; above, by steps of conjugate gradients for all outputs at once, from the
    weights that the method made, which never err more than these.

    Attributes:
        start: the method that says which weights stay.
        damping: what is added to the diagonal of the second moments, as a fraction of
            its mean, above 0; more stays nearer to the weights as they were given.
        exact: the most inputs whose equations are solved exactly.
        steps: of conjugate gradients.

    Raises:
        TypeError: `start` is no method.
        ValueError: `damping` is not above 0 and finite, or a number is no positive int.

    References:
        Boza 2024, "Fast and Effective Weight Update for Pruned Large Language Models":
        the problem, solved there by ADMM.
    """

    start: Method = _WANDA
    damping: float = 0.01
    exact: int = 256
    steps: int = 32

    def __post_init__(self) -> None:
        if not isinstance(self.start, Method):
            raise TypeError(
                "LeastSquares: start is a method of jcompress.pruning.one_shot, such "
                f"as Wanda(), not {self.start!r}"
            )
        check_damping("LeastSquares", self.damping)
        for name in ("exact", "steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"LeastSquares: {name} is a positive int, not {value!r}"
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


@functools.partial(jax.jit, static_argnames="spec")
def refitted(
    matrix: jax.Array, first: jax.Array, moments: jax.Array, *, spec: LeastSquares
) -> jax.Array:
    """The weights [N, K] of least error that are 0 where `first` is."""
    h = damped(moments.astype(jnp.float32), spec.damping)
    if matrix.shape[1] <= spec.exact:
        return fitted(matrix, first != 0, h)
    return _descended(matrix, first, h, spec.steps)


def fitted(matrix: jax.Array, keep: jax.Array, h: jax.Array) -> jax.Array:
    """The weights of least error among those that stay, exactly.

    Args:
        matrix: the weights as they were given, float32 [N, K].
        keep: which stay, bool [N, K].
        h: the moments, float32 [K, K], positive definite.

    Returns:
        float32 [N, K], 0 where nothing stays.
    """
    wanted = jnp.matmul(matrix, h, precision="highest")
    identity = jnp.eye(len(h), dtype=h.dtype)

    def one(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        keep, right = row
        both = keep[:, None] & keep[None, :]
        factor = jax.scipy.linalg.cho_factor(jnp.where(both, h, identity), lower=True)
        found: jax.Array = jax.scipy.linalg.cho_solve(
            factor, jnp.where(keep, right, np.float32(0))
        )
        return jnp.where(keep, found, np.float32(0))

    # One after the other: see jcompress.rounding.solving.
    found: jax.Array = jax.lax.map(one, (keep, wanted))
    return found


def _descended(
    matrix: jax.Array, first: jax.Array, h: jax.Array, steps: int
) -> jax.Array:
    """Conjugate gradients for all outputs at once, preconditioned by the diagonal."""
    keep = first != 0
    inverse = (1 / jnp.diagonal(h))[None, :]

    def through(x: jax.Array) -> jax.Array:
        return jnp.where(keep, jnp.matmul(x, h, precision="highest"), np.float32(0))

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axis=1, keepdims=True)

    def ratio(over: jax.Array, under: jax.Array) -> jax.Array:
        return jnp.where(under > 0, over / jnp.where(under > 0, under, 1), 0)

    def step(_: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        found, left, way, size = state
        passed = through(way)
        far = ratio(size, dot(way, passed))
        found, left = found + far * way, left - far * passed
        scaled = left * inverse
        after = dot(left, scaled)
        return found, left, scaled + ratio(after, size) * way, after

    left = through(matrix - first)
    scaled = left * inverse
    state = (first, left, scaled, dot(left, scaled))
    found: jax.Array = jax.lax.fori_loop(0, steps, step, state)[0]
    return found

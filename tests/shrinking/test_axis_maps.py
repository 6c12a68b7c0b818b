"""Axes that an operation only maps over stay free; those it computes over do not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_groups import between, compare, normal

from jcompress.errors import MismatchError
from jcompress.shrinking import find_groups

X = normal(4, 3, seed=1)
SQUARE = normal(4, 4) + 4 * jnp.eye(4)
SQUARES = 0.1 * normal(6, 4, 4) + 3 * jnp.eye(4)[None]
POINTS = np.linspace(-1, 1, 4, dtype=np.float32)
Op = Callable[[jax.Array], jax.Array]


def matrices(x: jax.Array) -> jax.Array:
    """[4, 6] to a well conditioned matrix for each of the 6 units."""
    return 0.1 * x.T[:, :, None] * normal(1, 1, 4) + SQUARES


def rows(x: jax.Array) -> jax.Array:
    return x.sum(1).T


def sorted_places(x: jax.Array, method: str) -> jax.Array:
    def one(column: jax.Array) -> jax.Array:
        return jnp.searchsorted(jnp.sort(column), POINTS, method=method)

    return jax.vmap(one, 1, 1)(x).astype(jnp.float32)


def steps(x: jax.Array) -> jax.Array:
    def matvec(v: jax.Array) -> jax.Array:
        return SQUARE @ v

    def solve(matvec: Op, right: jax.Array) -> jax.Array:
        return jnp.linalg.solve(SQUARE, right)

    return jax.lax.custom_linear_solve(matvec, x, solve, solve)


def windows(x: jax.Array) -> jax.Array:
    def add_twice(a: jax.Array, b: jax.Array) -> jax.Array:
        return a + 2 * b

    zero = jnp.float32(0)
    return jax.lax.reduce_window(x, zero, add_twice, (2, 1), (1, 1), "VALID")


MAPPED: dict[str, Op] = {
    "inv": lambda x: rows(jnp.linalg.inv(matrices(x))),
    "solve": lambda x: jnp.linalg.solve(SQUARE, x),
    "solve a batch": lambda x: rows(
        jnp.linalg.solve(matrices(x), matrices(jnp.sin(x)))
    ),
    "lu": lambda x: rows(jax.lax.linalg.lu(matrices(x))[0]),
    "triangular_solve": lambda x: jax.lax.linalg.triangular_solve(
        SQUARE, x, left_side=True, lower=True
    ),
    "triangular_solve from the right": lambda x: (
        jax.lax.linalg.triangular_solve(SQUARE, x.T, left_side=False).T
    ),
    "triangular_solve of a batch": lambda x: rows(
        jax.lax.linalg.triangular_solve(SQUARES, matrices(x), left_side=True)
    ),
    "custom_linear_solve": steps,
    "conjugate gradients": lambda x: jax.scipy.sparse.linalg.cg(
        lambda v: SQUARE.T @ (SQUARE @ v), x, maxiter=4
    )[0],
    "scatter_min": lambda x: jax.ops.segment_min(x, jnp.asarray([0, 1, 0, 1]), 2),
    "argsort": lambda x: jnp.argsort(x, axis=0).astype(jnp.float32),
    "sort by keys": lambda x: jax.lax.sort(
        (x, jnp.cos(x), jnp.exp(x)), dimension=0, num_keys=2
    )[2],
    "searchsorted": lambda x: sorted_places(x, "scan"),
    "searchsorted by sorting": lambda x: sorted_places(x, "sort"),
    "searchsorted by comparison": lambda x: sorted_places(x, "compare_all"),
    "reduce_window": windows,
    "reduce": lambda x: (
        x + jax.lax.reduce(x, jnp.float32(0), lambda a, b: a + 2 * b, (0,))[None]
    ),
    "pure_callback one by one": lambda x: jax.vmap(
        lambda column: jax.pure_callback(
            lambda v: np.cumsum(v, -1),
            jax.ShapeDtypeStruct(column.shape, column.dtype),
            column,
            vmap_method="sequential",
        ),
        1,
        1,
    )(x),
}
"""Of [4, 6], over the first axis."""

NOT_DIFFERENTIABLE = {"reduce_window", "reduce", "pure_callback one by one"}


OPAQUE = "SearchSorted[" in str(jax.make_jaxpr(jnp.searchsorted)(POINTS, POINTS))
"""In JAX 0.12 it is one operation that nobody can look into, which holds its axes."""


@pytest.mark.parametrize("name", MAPPED)
def test_axes_that_are_mapped_over_are_free(name: str) -> None:
    fn, tree = between(MAPPED[name])
    groups = find_groups(fn, tree, X)
    if "searchsorted" in name and OPAQUE:
        with pytest.raises(MismatchError, match=r"call_hi_primitive in .* fixes it"):
            groups["a:1"]
        return
    assert groups["a:1"].size == 6
    # One call of the host after the other is a loop over the units.
    assert (groups["a:1"].reduced or "").split()[:1] == (
        ["scan"] if "callback" in name else []
    )
    plan = groups.keep({"a:1": [0, 2, 5]})
    compare(fn, tree, plan, X, gradients=name not in NOT_DIFFERENTIABLE)


COMPUTED: dict[str, Op] = {
    "triangular_solve": lambda x: jax.lax.linalg.triangular_solve(
        normal(6, 6) + 4 * jnp.eye(6), x
    ),
    "triangular_solve by units": lambda x: jax.lax.linalg.triangular_solve(
        x[:, :, None] * x[:, None] + 9 * jnp.eye(6)[None],
        x[:, :, None],
        left_side=True,
    )[..., 0],
    "lu": lambda x: jax.lax.linalg.lu(x.T @ x + 4 * jnp.eye(6))[0],
    "pure_callback": lambda x: jax.pure_callback(
        np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims"
    ),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_axes_that_are_computed_over_are_fixed(name: str) -> None:
    fn, tree = between(COMPUTED[name])
    assert name.split()[0] in find_groups(fn, tree, X).fixed["a:1"]


def test_the_windows_gradient() -> None:
    def pooled(x: jax.Array) -> Any:
        out = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 1), (1, 1), "VALID")
        return (out * out).sum()

    fn, tree = between(jax.grad(pooled))
    groups = find_groups(fn, tree, X)
    compare(fn, tree, groups.keep({"a:1": [1, 4]}), X, gradients=False)

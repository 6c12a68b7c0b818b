"""Choose the codes of vectors, one vector after the other, in a metric of its own.

With H the second moments of the inputs the error of a weight W' is
`tr((W - W') H (W - W')^T)`. The rest of the error makes of a vector w the wanted one
v = w + F e, e being the errors of the other inputs, and q costs (v - q)^T G (v - q).

- In turn: `H = T^T T`, T lower triangular, own block `T_jj`: `F = T_jj^-1 T_j` of the
  inputs before, `G = T_jj^T T_jj`. Inputs make up for those before them, and those to
  come are free to make up for them (GPTQ's idea, with D inputs at a time: GPTVQ).
- As all others are: `F = H_jj^-1 H_j`, `G = H_jj`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.rounding.solving import solve_each

_ROWS = 256
"""Outputs whose errors are at hand together."""


class Metric(NamedTuple):
    """How codes of one vector after the other are chosen.

    Attributes:
        passed: F, float32 [J, D, K].
        own: G, float32 [J, D, D].
    """

    passed: jax.Array
    own: jax.Array


def in_turn(h: jax.Array, length: int) -> Metric:
    """Of vectors that are chosen in turn, knowing the errors of those before."""
    lower = jnp.linalg.cholesky(h[::-1, ::-1])
    t = lower.T[::-1, ::-1]
    blocks = t.reshape(-1, length, len(t))
    own = _diagonal(blocks)
    passed = solve_each(own, blocks)
    turned = jnp.swapaxes(own, 1, 2)
    return Metric(_others(passed), jnp.matmul(turned, own, precision="highest"))


def all_else(h: jax.Array, length: int) -> Metric:
    """Of vectors that are chosen again, the others being as they are."""
    blocks = h.reshape(-1, length, len(h))
    own = _diagonal(blocks)
    return Metric(_others(solve_each(own, blocks)), own)


def _diagonal(blocks: jax.Array) -> jax.Array:
    """The square blocks [J, D, D] of rows of blocks [J, D, J D]."""
    count, length, _ = blocks.shape
    split = blocks.reshape(count, length, count, length)
    own: jax.Array = jax.vmap(lambda one, j: one[:, j])(split, jnp.arange(count))
    return own


def _others(blocks: jax.Array) -> jax.Array:
    """Rows of blocks with 0 in the square ones."""
    count, length, _ = blocks.shape
    other = ~jnp.eye(count, dtype=bool)[:, None, :, None]
    split = blocks.reshape(count, length, count, length)
    return jnp.where(other, split, np.float32(0)).reshape(blocks.shape)


def least_place(costs: jax.Array) -> jax.Array:
    """The first place of the least along the last axis, int32.

    Two passes that compile to vectors, which `argmin` does not on CPUs.
    """
    least = jnp.min(costs, axis=-1, keepdims=True)
    places = jax.lax.broadcasted_iota(jnp.int32, costs.shape, costs.ndim - 1)
    last = np.int32(costs.shape[-1] - 1)
    return jnp.min(jnp.where(costs <= least, places, last), axis=-1)


def picked(tables: jax.Array, codes: jax.Array) -> jax.Array:
    """The sums [..., D] of the entries that codes [..., M] name."""
    total = tables[0][codes[..., 0]]
    for number in range(1, len(tables)):
        total = total + tables[number][codes[..., number]]
    return total


def sweep(
    w: jax.Array,
    metric: Metric,
    codes: jax.Array,
    tables: jax.Array,
    scales: jax.Array,
    starts: int,
    *,
    fresh: bool,
) -> jax.Array:
    """Choose the codes [N, J, M] of one vector after the other."""
    outputs = w.shape[0]
    count, length, _ = metric.passed.shape
    rows = min(_ROWS, outputs)
    short = -outputs % rows

    def part(given: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        w, codes, scales = given
        values = picked(tables, codes).reshape(w.shape) * scales
        errors = jnp.zeros_like(w) if fresh else w - values

        def one(
            errors: jax.Array, now: tuple[jax.Array, ...]
        ) -> tuple[jax.Array, jax.Array]:
            j, passed, own, held = now
            mine = jax.lax.dynamic_slice_in_dim(w, j * length, length, 1)
            made = jnp.matmul(errors, passed.T, precision="highest")
            wanted = (mine + made) / scales
            code = _choose(wanted, own, tables, None if fresh else held, starts)
            error = mine - picked(tables, code) * scales
            errors = jax.lax.dynamic_update_slice_in_dim(errors, error, j * length, 1)
            return errors, code

        _, found = jax.lax.scan(
            one,
            errors,
            (jnp.arange(count), *metric, jnp.moveaxis(codes, 1, 0)),
        )
        return jnp.moveaxis(found, 0, 1)

    def cut(x: jax.Array, fill: float) -> jax.Array:
        pad = ((0, short), *[(0, 0)] * (x.ndim - 1))
        tall = jnp.pad(x, pad, constant_values=fill)
        return tall.reshape(-1, rows, *x.shape[1:])

    every = jax.lax.map(part, (cut(w, 0), cut(codes, 0), cut(scales, 1)))
    found: jax.Array = every.reshape(-1, *codes.shape[1:])[:outputs]
    return found


def _choose(
    wanted: jax.Array,
    metric: jax.Array,
    tables: jax.Array,
    held: jax.Array | None,
    starts: int,
) -> jax.Array:
    """The codes [N, M] of which the sums are nearest to vectors [N, D] in a metric.

    A sum of several entries is found from some first entries: to each the best second
    one, and so on; then each is chosen again as the others are. `held` is one more.
    """
    passed = jnp.matmul(tables, metric, precision="highest")
    size = jnp.sum(passed * tables, axis=-1)
    linear = [
        own[None] - 2 * jnp.matmul(wanted, to.T, precision="highest")
        for own, to in zip(size, passed, strict=True)
    ]
    number = len(tables)
    if number == 1:
        return least_place(linear[0])[:, None]
    cross = 2 * jnp.einsum("acd,bed->abce", passed, tables, precision="highest")

    def cost(codes: jax.Array, m: int, others: range) -> jax.Array:
        """Of each entry of a table, [N, B, C], beside codes [N, B, M]."""
        total = jnp.broadcast_to(
            linear[m][:, None], (*codes.shape[:2], tables.shape[1])
        )
        for other in others:
            if other != m:
                total = total + cross[other, m][codes[..., other]]
        return total

    def chosen(codes: jax.Array, m: int, others: range) -> jax.Array:
        return codes.at[..., m].set(least_place(cost(codes, m, others)))

    first, far = [], linear[0]
    for _ in range(starts):
        at = least_place(far)
        first.append(at)
        far = jnp.where(
            jnp.arange(far.shape[1])[None] == at[:, None], np.float32(np.inf), far
        )
    codes = jnp.zeros((len(wanted), starts, number), jnp.int32)
    codes = codes.at[..., 0].set(jnp.stack(first, axis=1))
    for m in range(1, number):
        codes = chosen(codes, m, range(m))
    if held is not None:
        codes = jnp.concatenate([codes, held[:, None]], axis=1)
    for m in range(number):
        codes = chosen(codes, m, range(number))
    errors = picked(tables, codes) - wanted[:, None]
    lost = jnp.sum(jnp.matmul(errors, metric, precision="highest") * errors, axis=-1)
    best = least_place(lost)
    return jnp.take_along_axis(codes, best[:, None, None], axis=1)[:, 0]

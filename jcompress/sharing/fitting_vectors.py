"""Fit codes of vectors and their tables to a weight, by the error of its outputs.

Three moves lower the squared error of the outputs, each for what the others are: codes,
one vector of inputs after the other (`vector_codes`); tables; scales.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.rounding.copies import output_errors, per_weight
from jcompress.rounding.in_turn import damped
from jcompress.sharing.vector_codes import (
    all_else,
    in_turn,
    least_place,
    picked,
    sweep,
)

_SAMPLE = 2**14
"""Vectors among which the first tables are found."""
_MEANS = 12
"""Iterations of k-means for the first tables."""
_STEPS = 8
"""Steps of conjugate gradients towards the best tables."""


class Fitted(NamedTuple):
    """What a matrix becomes.

    Attributes:
        codes: uint8 [N, M, J].
        tables: float32 [M, C, D].
        scales: float32 [N, 1].
    """

    codes: jax.Array
    tables: jax.Array
    scales: jax.Array


def fit_vectors(
    matrix: jax.Array,
    moments: jax.Array,
    key: jax.Array,
    *,
    length: int,
    codes: int,
    bits: int,
    rounds: int,
    starts: int,
    dampings: Sequence[float],
) -> Fitted:
    """Fit codes, tables and scales to one matrix.

    Where a few directions of the inputs hold most of the moments, little damping leaves
    the codes of all others in a poor place, and where none does, much damping costs
    accuracy: of several dampings that is taken by which the outputs err least.

    Args:
        matrix: floats [N, K].
        moments: float32 [K, K], the sum of x x^T over the inputs x, up to a factor.
        key: which vectors the first tables begin with.
        length: D, weights a code.
        codes: M, added up.
        bits: of a code.
        rounds: how often all is chosen again.
        starts: of sums of several entries, how many are tried.
        dampings: each as of `Gptq`.
    """

    def one(damping: jax.Array | float) -> tuple[Fitted, jax.Array]:
        return _fitted(
            matrix, moments, key, length, codes, bits, rounds, starts, damping
        )

    if len(dampings) == 1:
        return one(dampings[0])[0]
    found, errors = jax.lax.map(one, jnp.asarray(dampings, jnp.float32))
    best = least_place(errors)
    chosen: Fitted = jax.tree.map(lambda x: x[best], found)
    return chosen


def _fitted(
    matrix: jax.Array,
    moments: jax.Array,
    key: jax.Array,
    length: int,
    codes: int,
    bits: int,
    rounds: int,
    starts: int,
    damping: jax.Array | float,
) -> tuple[Fitted, jax.Array]:
    """What a matrix becomes by one damping, and the error of its outputs."""
    inputs = matrix.shape[1]
    short = -inputs % length
    w = jnp.pad(matrix.astype(jnp.float32), ((0, 0), (0, short)))
    seen = per_weight(moments.astype(jnp.float32))
    h = per_weight(damped(seen, damping))
    # What fills up the last vector stands for nothing and counts next to nothing.
    h = jnp.pad(h, (0, short)) + jnp.diag(
        jnp.where(jnp.arange(inputs + short) < inputs, 0, 1e-3).astype(jnp.float32)
    )
    count = (inputs + short) // length
    # Vectors that count most come first: the rest can make up for their errors.
    worth = jnp.diagonal(h).reshape(count, length).sum(1)
    order = jnp.argsort(-worth, stable=True)
    places = (order[:, None] * length + jnp.arange(length)[None]).reshape(-1)
    w, h = w[:, places], h[places][:, places]

    scales = jnp.sqrt(jnp.mean(jnp.square(w), axis=1, keepdims=True))
    scales = jnp.where(scales == 0, np.float32(1), scales)
    tables = _first_tables(w / scales, h, key, length, codes, 2**bits)
    nothing = jnp.zeros((w.shape[0], count, codes), jnp.int32)
    found = sweep(w, in_turn(h, length), nothing, tables, scales, starts, fresh=True)
    metric = all_else(h, length)

    def again(
        _: jax.Array, now: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        found, tables, scales = now
        tables = _best_tables(w, h, found, tables, scales)
        scales = _best_scales(w, h, found, tables, scales)
        found = sweep(w, metric, found, tables, scales, starts, fresh=False)
        return found, tables, scales

    found, tables, scales = jax.lax.fori_loop(0, rounds, again, (found, tables, scales))
    tables = _best_tables(w, h, found, tables, scales)
    scales = _best_scales(w, h, found, tables, scales)
    found = found[:, jnp.argsort(order)]
    values = (picked(tables, found).reshape(w.shape) * scales)[:, :inputs]
    change = matrix.astype(jnp.float32) - values
    made = Fitted(jnp.moveaxis(found, 1, 2).astype(jnp.uint8), tables, scales)
    return made, jnp.sum(output_errors(change, seen))


def _first_tables(
    vectors: jax.Array,
    h: jax.Array,
    key: jax.Array,
    length: int,
    codes: int,
    size: int,
) -> jax.Array:
    """Tables [M, C, D] by k-means, each of what the ones before leave.

    Args:
        vectors: the weights in units of their scales, [N, K].
        h: second moments, whose diagonal tells what each weight counts.
        key: which vectors it begins with.
        length, codes, size: D, M and C.
    """
    inputs = vectors.shape[1]
    flat = vectors.reshape(-1, length)
    diagonal = jnp.diagonal(h).reshape(-1, length)
    taken, begins = jax.random.split(key)
    sample = jnp.arange(len(flat))
    if len(flat) > _SAMPLE:
        sample = jax.random.choice(taken, len(flat), (_SAMPLE,), replace=False)
    left, weight = flat[sample], diagonal[sample % (inputs // length)]

    def step(_: int, table: jax.Array) -> jax.Array:
        at = _nearest(left, weight, table)
        heavy = jnp.zeros_like(table).at[at].add(weight)
        total = jnp.zeros_like(table).at[at].add(weight * left)
        # An entry that nothing is nearest to stays.
        return jnp.where(heavy > 0, total / jnp.where(heavy > 0, heavy, 1), table)

    made = []
    for one in jax.random.split(begins, codes):
        repeat = -(-size // len(left))
        begin = jax.random.permutation(one, len(left))
        table = left[jnp.tile(begin, repeat)[:size]]
        if repeat > 1:
            # Fewer vectors than entries: the same one twice would never part.
            table = table + 1e-3 * jax.random.normal(one, table.shape)
        table = jax.lax.fori_loop(0, _MEANS, step, table)
        left = left - table[_nearest(left, weight, table)]
        made.append(table)
    return jnp.stack(made)


def _nearest(vectors: jax.Array, weight: jax.Array, table: jax.Array) -> jax.Array:
    """Which entry of [C, D] is nearest to each vector, weights of [V, D] counting."""
    far = weight @ jnp.square(table).T - 2 * (weight * vectors) @ table.T
    return least_place(far)


def _best_tables(
    w: jax.Array, h: jax.Array, codes: jax.Array, tables: jax.Array, scales: jax.Array
) -> jax.Array:
    """Tables nearer to those of least error: a quadratic, by conjugate gradients."""
    size, length = tables.shape[1:]

    def collected(matrix: jax.Array) -> jax.Array:
        """Sums over the weights of each entry: [N, K] -> [M, C, D]."""
        vectors = matrix.reshape(-1, length)
        return jnp.stack(
            [
                jnp.zeros((size, length), jnp.float32).at[own].add(vectors)
                for own in jnp.moveaxis(codes, 2, 0).reshape(len(tables), -1)
            ]
        )

    def applied(tables: jax.Array) -> jax.Array:
        values = picked(tables, codes).reshape(w.shape) * scales
        return collected(jnp.matmul(values, h, precision="highest") * scales)

    counts = jnp.square(scales) * jnp.diagonal(h)[None]
    size_of = collected(counts)
    inverse = jnp.where(size_of > 0, 1 / jnp.where(size_of > 0, size_of, 1), 0)
    left = collected(jnp.matmul(w, h, precision="highest") * scales) - applied(tables)
    first = inverse * left

    def step(
        _: int, now: tuple[jax.Array, jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        tables, left, way, length = now
        passed = applied(way)
        bent = jnp.vdot(way, passed)
        far = jnp.where(bent > 0, length / jnp.where(bent > 0, bent, 1), 0)
        tables, left = tables + far * way, left - far * passed
        scaled = inverse * left
        after = jnp.vdot(left, scaled)
        turn = jnp.where(length > 0, after / jnp.where(length > 0, length, 1), 0)
        return tables, left, scaled + turn * way, after

    begin = (tables, left, first, jnp.vdot(left, first))
    found: jax.Array = jax.lax.fori_loop(0, _STEPS, step, begin)[0]
    return found


def _best_scales(
    w: jax.Array, h: jax.Array, codes: jax.Array, tables: jax.Array, scales: jax.Array
) -> jax.Array:
    """The scale of each output with which it errs least, if that is above 0."""
    steps = picked(tables, codes).reshape(w.shape)
    passed = jnp.matmul(steps, h, precision="highest")
    right = jnp.sum(passed * w, axis=1, keepdims=True)
    left = jnp.sum(passed * steps, axis=1, keepdims=True)
    usable = (right > 0) & (left > 0)
    return jnp.where(usable, right / jnp.where(usable, left, 1), scales)

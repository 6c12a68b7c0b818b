"""K-means in one dimension: few values that stand for many, and which is nearest.

Numbers on a line have clusters without gaps between their members, so that one sort
and two cumulative sums, in float64 on the host, give the mean of every cluster without
looking at its members again. Sums do not depend on an order of execution: the tables
are the same on every machine.
"""

import enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Host = np.ndarray[Any, Any]


class Start(enum.Enum):
    """Where k-means begins."""

    LINEAR = "linear"
    """Evenly from the smallest to the largest weight: large weights, of which there
    are few, get entries of their own."""
    DENSITY = "density"
    """At quantiles: every entry begins with the same mass of weights."""
    PLUS_PLUS = "plus plus"
    """K-means++: at random weights, far ones first; needs a key."""

    def __repr__(self) -> str:
        return f"Start.{self.name}"


def fit_table(
    values: Host,
    importance: Host | None,
    *,
    entries: int,
    start: Start,
    zero: bool,
    iterations: int,
    draws: Host | None,
) -> Host:
    """The values that stand for others with the least squared error.

    Lloyd's iterations: each entry takes the weights that it is nearest to, then moves
    to their weighted mean; an entry that no weight is nearest to moves to the weight
    with the largest error. They end when no weight changes its entry, in a minimum
    that need not be the global one.

    Args:
        values: float64 [V], finite, V >= 1.
        importance: float64 [V], not negative, of a sum above 0; None for all alike.
        entries: C.
        start: where to begin.
        zero: whether one entry is 0 and stays there.
        iterations: the most that are made.
        draws: float64 [C], uniform in [0, 1), for `Start.PLUS_PLUS`.

    Returns:
        float64 [C], increasing. If no more than C different values occur, these
        (and 0, if `zero`), the last repeated.

    References:
        Lloyd 1982, "Least Squares Quantization in PCM"; with weights from the diagonal
        of the Hessian, Choi et al. 2017, "Towards the Limit of Network Quantization",
        section 3.3.
    """
    order = np.argsort(values, kind="stable")
    values = values[order]
    weights = np.ones_like(values) if importance is None else importance[order]
    known = np.unique(values)
    if zero:
        known = np.union1d(known, np.zeros(1))
    if len(known) <= entries:
        return np.pad(known, (0, entries - len(known)), mode="edge")
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * values)])
    centres = _pinned(_started(values, weights, entries, start, draws), zero)
    before: Host | None = None
    for _ in range(iterations):
        middles = (centres[1:] + centres[:-1]) / 2
        cuts = np.searchsorted(values, middles, side="right")
        edges = np.concatenate([[0], cuts, [len(values)]])
        if before is not None and np.array_equal(edges, before):
            break
        before = edges
        heavy = np.diff(mass[edges])
        means = np.diff(moment[edges]) / np.where(heavy > 0, heavy, 1.0)
        moved = np.where(heavy > 0, means, centres)
        if zero:
            moved = np.where(centres == 0, 0.0, moved)
        centres = _refilled(moved, values, weights, edges, zero)
    return centres


def _refilled(
    centres: Host, values: Host, weights: Host, edges: Host, zero: bool
) -> Host:
    """Entries that nothing is nearest to go where the error is largest."""
    empty = np.diff(edges) == 0
    if zero:
        empty &= centres != 0
    if not empty.any():
        return centres
    errors = weights * (values - np.repeat(centres, np.diff(edges))) ** 2
    centres = centres.copy()
    for number in np.nonzero(empty)[0]:
        worst = int(np.argmax(errors))
        if errors[worst] <= 0:
            break
        centres[number] = values[worst]
        errors[values == values[worst]] = 0
    return np.sort(centres)


def _pinned(centres: Host, zero: bool) -> Host:
    if zero:
        centres[np.argmin(np.abs(centres))] = 0.0
    return centres


def _started(
    values: Host, weights: Host, entries: int, start: Start, draws: Host | None
) -> Host:
    match start:
        case Start.LINEAR:
            return np.linspace(values[0], values[-1], entries)
        case Start.DENSITY:
            places = _at(weights, (np.arange(entries) + 0.5) / entries)
            return np.asarray(values[places])
        case Start.PLUS_PLUS:
            assert draws is not None
            centres = [values[_at(weights, draws[:1])[0]]]
            far = (values - centres[0]) ** 2
            for draw in draws[1:]:
                chance = weights * far
                # Where all that matters is met already, the rest is drawn by distance.
                chance = chance if chance.any() else far
                centres.append(values[_at(chance, draw[None])[0]])
                far = np.minimum(far, (values - centres[-1]) ** 2)
            return np.sort(np.asarray(centres))


def _at(weights: Host, fractions: Host) -> Host:
    """The places at which the given fractions of the whole weight are reached."""
    total = np.cumsum(weights)
    found = np.searchsorted(total, fractions * total[-1], side="right")
    return np.asarray(np.minimum(found, len(weights) - 1))


def nearest(matrix: jax.Array, tables: jax.Array) -> jax.Array:
    """Which entry of its table each weight is nearest to; of two, the smaller.

    Args:
        matrix: floats [*S, N, K], of which N / R rows share a table.
        tables: float32 [*S, R, C], in any order.

    Returns:
        int32 [*S, N, K], the places in the tables.
    """
    size = tables.shape[-1]
    flat = tables.reshape(-1, size)
    values = matrix.astype(jnp.float32).reshape(flat.shape[0], -1)
    method = "compare_all" if size <= 16 else "scan_unrolled"

    def places(table: jax.Array, row: jax.Array) -> jax.Array:
        order = jnp.argsort(table)
        ordered = table[order]
        middles = (ordered[1:] + ordered[:-1]) * np.float32(0.5)
        found = jnp.searchsorted(middles, row, side="left", method=method)
        return order.astype(jnp.int32)[found]

    return jax.vmap(places)(flat, values).reshape(matrix.shape)

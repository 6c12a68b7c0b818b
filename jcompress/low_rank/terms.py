"""Kernels as sums of outer products: damped alternating least squares, on the host."""

import dataclasses
import math

import numpy as np

from jcompress.low_rank.split import Host, rank_of

FIRST_DAMPING, FALL = 0.1, 0.85
"""The damping of the first sweep, and what each sweep leaves of it."""

NOISE = 0.1
"""Length of the noise on each vector of the start, whose length is 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms:
    """A sum of outer products that stands for a kernel [D_0, ..., D_(L-1)].

        kernel[i, ..., j] = sum over r of vectors[0][i, r] ... vectors[L-1][j, r]

    Attributes:
        vectors: [D_m, R] for each axis; the vectors of one term are equally long, the
            terms fall in norm.
        lost: `|kernel - sum|^2 / |kernel|^2`.
    """

    vectors: tuple[Host, ...]
    lost: float


def sum_of_terms(
    kernel: Host,
    rank: int,
    *,
    sweeps: int,
    tolerance: float,
    damping: float,
    seed: int,
    goal: float = 0.0,
) -> Terms:
    """Approximate a kernel by a sum of outer products.

    Args:
        kernel: float64 [O, *W, I].
        rank: how many products; at most the number of singular values of `_start`.
        sweeps: how often all vectors are refined, at most.
        tolerance: the relative fall of the objective that ends the sweeps.
        damping: the factor of the terms' squared norms in the objective.
        seed: of the noise on the start.
        goal: the sweeps also end when no more than this is lost.
    """
    size = float(np.linalg.norm(kernel))
    if not size:
        return Terms(
            vectors=tuple(np.zeros((length, rank)) for length in kernel.shape), lost=0.0
        )
    target = kernel / size
    best, falling = _start(target, rank)
    lost = float(falling[rank:].sum())
    noise = np.random.default_rng(seed)
    vectors = []
    for start in best:
        away = np.asarray(noise.normal(size=start.shape))
        unit = _units(start)[0] + NOISE * _units(away)[0]
        vectors.append(_units(unit)[0])
    before = math.inf
    weight = FIRST_DAMPING
    for _ in range(sweeps):
        if lost <= goal:
            break
        weight = max(weight * FALL, damping)
        left, norms = _sweep(target, vectors, weight)
        if left < lost:
            best, lost = [*vectors], left
        objective = left + weight * norms
        # Only the objectives of one damping compare.
        if weight > damping:
            continue
        if before - objective < tolerance * objective:
            break
        before = objective
    return Terms(vectors=_balanced(best, size), lost=lost)


def rank_bounds(kernel: Host, energy: float) -> tuple[int, int]:
    """Ranks between which the least lies that keeps a share of the squares.

    Any sum of r terms has unfoldings of rank r at most, so none keeps more than the
    first r singular values of each; and the start of `sum_of_terms` keeps its share.
    """
    unfolded = (
        np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
        for axis in range(kernel.ndim)
    )
    values = [np.linalg.svd(matrix, compute_uv=False) for matrix in unfolded]
    low = max(int(rank_of(v, energy)) for v in values)
    _, falling = _start(kernel, 1)
    return low, int(rank_of(np.sqrt(falling), energy))


def _start(kernel: Host, rank: int) -> tuple[list[Host], Host]:
    """The largest orthogonal terms of the higher-order SVD of a kernel [O, *W, I].

    Turned onto the singular vectors of each window axis, the kernel has a matrix
    [O, I] at each place of the window; the singular triples of all of them are
    orthogonal terms whose sum is the kernel.

    Returns:
        The vectors of the first `rank`, and the squared norms of all, falling.
    """
    outputs, *window, inputs = kernel.shape
    turns = []
    turned = kernel
    for axis, length in enumerate(window, 1):
        unfolded = np.moveaxis(kernel, axis, 0).reshape(length, -1)
        turns.append(np.linalg.svd(unfolded @ unfolded.T)[0])
        turned = np.moveaxis(np.tensordot(turned, turns[-1], (axis, 0)), -1, axis)
    places = np.moveaxis(turned.reshape(outputs, -1, inputs), 1, 0)
    left, values, right = np.linalg.svd(places, full_matrices=False)
    order = np.argsort(-values, axis=None, kind="stable")
    place, number = np.divmod(order[:rank], values.shape[1])
    where = np.unravel_index(place, window)
    sizes = values.reshape(-1)
    vectors = [
        left[place, :, number].T,
        *(turn[:, index] for turn, index in zip(turns, where, strict=True)),
        right[place, number].T * sizes[order[:rank]],
    ]
    return vectors, np.square(sizes[order])


def _sweep(kernel: Host, vectors: list[Host], damping: float) -> tuple[float, float]:
    """Refine the vectors of each axis once, those of the last axis last; in place.

    All vectors but the last axis's come back of length 1, so that the damping of each
    step is that of the terms themselves.

    Returns:
        What is lost of a kernel of norm 1, and the sum of the terms' squared norms.
    """
    last = kernel.ndim - 1
    vectors[last] = _units(vectors[last])[0]
    # One pass over the kernel serves all axes but the last.
    narrow = np.tensordot(kernel, vectors[last], (last, 0))
    for axis in (*range(1, last), 0):
        others = [a for a in range(last) if a != axis]
        vectors[axis] = _solved(vectors, axis, _met(narrow, vectors, others), damping)
        vectors[axis] = _units(vectors[axis])[0]
    narrow = np.moveaxis(np.tensordot(vectors[0], kernel, (0, 0)), 0, -1)
    lead = np.zeros((1, vectors[0].shape[1])) + 1
    met = _met(narrow[None], [lead, *vectors[1:]], list(range(last)))
    vectors[last] = _solved(vectors, last, met, damping)
    within = _gram(vectors, last) * (vectors[last].T @ vectors[last])
    lost = 1 - 2 * float(np.sum(met * vectors[last])) + float(within.sum())
    return max(lost, 0.0), float(np.sum(np.square(vectors[last])))


def _met(narrow: Host, vectors: list[Host], axes: list[int]) -> Host:
    """[*D, R] summed over axes against their vectors, term by term."""
    for axis in sorted(axes, reverse=True):
        moved = np.moveaxis(narrow, axis, 0)
        part = vectors[axis].reshape(len(moved), *(1,) * (moved.ndim - 2), -1)
        narrow = (moved * part).sum(0)
    return narrow


def _gram(vectors: list[Host], without: int) -> Host:
    """The inner products of the terms over all axes but one, [R, R]."""
    rank = vectors[0].shape[1]
    product = np.ones((rank, rank))
    for axis, part in enumerate(vectors):
        if axis != without:
            product = product * (part.T @ part)
    return product


def _solved(vectors: list[Host], axis: int, met: Host, damping: float) -> Host:
    """The best vectors of one axis for those of the others."""
    gram = _gram(vectors, axis)
    damped = gram + damping * np.eye(len(gram))
    solved: Host = np.linalg.solve(damped, met.T).T
    return solved


def _units(vectors: Host) -> tuple[Host, Host]:
    """Columns of length 1, and their lengths; a column of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=0)
    return vectors / np.where(lengths > 0, lengths, 1), lengths


def _balanced(vectors: list[Host], size: float) -> tuple[Host, ...]:
    """The terms by falling norm, times a size, their vectors equally long."""
    parts = [_units(part) for part in vectors]
    norms = size * np.prod([lengths for _, lengths in parts], axis=0)
    order = np.argsort(-norms, kind="stable")
    each = norms[order] ** (1 / len(parts))
    return tuple(units[:, order] * each for units, _ in parts)

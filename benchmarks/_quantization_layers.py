"""Layers whose inputs are correlated: real ones of g2p-en, and synthetic ones.

A layer holds a weight, what methods may know of its inputs, and the second moments of
other inputs, by which results are judged.
"""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import _g2p
import jax
import jax.numpy as jnp
import numpy as np

from jcompress.sites import find_sites, leaf_axes
from jcompress.statistics import AbsoluteMax, Means, SecondMoments, Several, observe
from jcompress.tensors.axes import to_matrix

Host = np.ndarray[Any, Any]
SIZE = 256
"""Inputs and outputs of all layers: peers compile or unroll for each shape."""


class Layer(NamedTuple):
    """A weight and its inputs.

    Attributes:
        name: for the tables.
        weight: float32 [N, K].
        moments: of the calibration inputs, the sum of x x^T, float32 [K, K].
        rows: how many calibration inputs there were.
        sizes: the means of their absolute values, float32 [K].
        largest: the largest absolute values, float32 [K].
        judge: second moments of inputs that no method saw, float64 [K, K].
    """

    name: str
    weight: Host
    moments: Host
    rows: int
    sizes: Host
    largest: Host
    judge: Host

    def error(self, made: Host) -> float:
        """|W x - W' x| over |W x| on the inputs that no method saw."""
        first = self.weight.astype(np.float64)
        change = made.astype(np.float64) - first
        lost, whole = (np.sum((w @ self.judge) * w) for w in (change, first))
        return float((lost / whole) ** 0.5)


def real(folder: pathlib.Path, *, quick: bool) -> Iterator[Layer]:
    """Reset gates [256, 256] of g2p-en, of states: of its letters and its phonemes.

    Args:
        folder: where the wheels lie.
        quick: fewer words, and the first gate only.
    """
    seen = 256 if quick else 1024
    params, every = _g2p.weights(folder), _g2p.words(folder)
    first = jnp.asarray(every.letters[:seen])
    other = jnp.asarray(every.letters[seen : 2 * seen])
    sites = find_sites(_g2p.apply, params, first)
    paths = ["enc_w_hh", "dec_w_hh"]
    kinds = Several(SecondMoments(), Means(absolute=True), AbsoluteMax())
    collect = jax.jit(observe(_g2p.apply, [(path, True) for path in paths], kinds))
    known, judged = collect(params, first)[1], collect(params, other)[1]
    for path in paths[: 1 if quick else 2]:
        moments, sizes, largest = known[path]
        yield Layer(
            f"g2p {path}, reset",
            np.asarray(to_matrix(params[path], leaf_axes(sites.of(path))))[:SIZE],
            np.asarray(moments),
            int(sizes.rows),
            np.asarray(sizes.mean),
            np.asarray(largest),
            np.asarray(judged[path][0], np.float64),
        )


def synthetic(*, quick: bool) -> Iterator[Layer]:
    """Two kinds of structure [256, 256].

    Args:
        quick: the first of them only.
    """
    kinds = {"low rank": _low_rank, "outliers": _outliers}
    for seed, (name, draw) in enumerate(kinds.items()):
        if quick and seed:
            return
        rng = np.random.default_rng(seed)
        inputs = draw(rng, SIZE)
        weight = rng.normal(size=(SIZE, SIZE)).astype(np.float32) / SIZE**0.5
        known, other = inputs[: len(inputs) // 2], inputs[len(inputs) // 2 :]
        wide = other.astype(np.float64)
        yield Layer(
            name,
            weight,
            known.T @ known,
            len(known),
            np.abs(known).mean(0),
            np.abs(known).max(0),
            wide.T @ wide,
        )


def _normal(rng: np.random.Generator, *shape: int) -> Host:
    return rng.normal(size=shape).astype(np.float32)


def _low_rank(rng: np.random.Generator, size: int) -> Host:
    """A quarter as many causes as inputs, noise, and sizes from 0.1 to 3."""
    x = _normal(rng, 8 * size, size // 4) @ _normal(rng, size // 4, size) / size**0.5
    sizes = np.geomspace(0.1, 3, size).astype(np.float32)
    return np.asarray((x + 0.3 * _normal(rng, 8 * size, size)) * rng.permutation(sizes))


def _outliers(rng: np.random.Generator, size: int) -> Host:
    """Correlated inputs of like size, but eight that are twenty times as large."""
    x = _normal(rng, 8 * size, size // 2) @ _normal(rng, size // 2, size) / size**0.5
    sizes = np.ones(size, np.float32)
    sizes[rng.permutation(size)[:8]] = 20
    return np.asarray(x * sizes)

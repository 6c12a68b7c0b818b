"""Rotates sets of axes, one after the other, and folds the scales in their way."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.rescaling._rotation_value import CannotRotateError
from jcompress.rescaling._rotation_walk import rotation_of
from jcompress.rescaling._unknowns import Floats
from jcompress.rescaling.known import Host
from jcompress.rescaling.orthogonal import random_hadamard, random_with_fixed_mean
from jcompress.rescaling.scalable import Scaling
from jcompress.sites import Operation
from jcompress.tensors import is_compressed
from jcompress.tracing.trace import Traced

Members = list[tuple[str, int]]
"""Leaves and their axes that are rotated together."""


@dataclasses.dataclass(frozen=True)
class RotatedAxes:
    """Axes that were rotated together.

    Attributes:
        name: the first of them, as `leaf:axis`.
        size: the length of the vectors that were rotated; a longer axis holds several.
        axes: all of them.
        folded: the scales of normalisations that went into other weights before.
        partly: those of `axes` of which only a part was rotated, such as the values in
            a fused weight of queries, keys and values.
        keeps_mean: whether the rotation leaves the mean of a vector as it is, since a
            normalisation takes it away; else it is a Hadamard matrix with random signs.
    """

    name: str
    size: int
    axes: tuple[str, ...]
    folded: tuple[str, ...] = ()
    keeps_mean: bool = False
    partly: tuple[str, ...] = ()

    def __str__(self) -> str:
        kind = "keeps the mean" if self.keeps_mean else "Hadamard"
        folded = f"; {', '.join(self.folded)} folded" if self.folded else ""
        partly = f"; of {', '.join(self.partly)} a part" if self.partly else ""
        return f"{', '.join(self.axes)}: {self.size}, {kind}{folded}{partly}"


def axis_name(path: str, axis: int) -> str:
    """An axis of a leaf, as `leaf:axis`."""
    return f"{path}:{axis}"


class Rotations:
    """Rotates one set of axes after the other.

    Attributes:
        new: the leaves so far, by name.
    """

    def __init__(self, traced: Traced, scaling: Scaling) -> None:
        self._traced, self._scaling = traced, scaling
        self.new: dict[str, Any] = {}

    def rotate(
        self,
        sizes: Sequence[int],
        members: Members,
        key: jax.Array,
        parts: Mapping[str, Host],
    ) -> RotatedAxes:
        """Rotate axes by the first length of vectors that the function allows.

        Args:
            sizes: the lengths to try.
            members: the axes.
            key: for the matrix.
            parts: by leaf where its vectors are rotated, if not everywhere: bool, of
                the leaf's rank, with 1 along axes on which it does not depend.

        Raises:
            CannotRotateError: it allows none.
        """
        for name, _ in members:
            if is_compressed(self._leaf(name)):
                raise CannotRotateError(f"{name} is compressed already")
            if not jnp.issubdtype(self._leaf(name).dtype, jnp.floating):
                raise CannotRotateError(f"{name} holds {self._leaf(name).dtype}")
        norms = [(name, axis) for name, axis in members if self._multiplies(name)]
        for name, _ in norms:
            if name in parts:
                raise CannotRotateError(f"the scale {name} is one of a part only")
        folded = self._folded(norms)
        turned = [member for member in members if member not in norms]
        axes: dict[str, list[int]] = {}
        for name, axis in turned:
            axes.setdefault(name, []).append(axis)
        even: dict[str, list[int]] = {}
        for name, axis in norms:
            even.setdefault(name, []).append(axis)
        for number, size in enumerate(sizes):
            try:
                _check_parts(turned, parts, size)
                needs = rotation_of(self._traced, size, axes, even, parts)
                break
            except CannotRotateError:
                if number == len(sizes) - 1:
                    raise
        self.new.update(folded)
        make = random_with_fixed_mean if needs.keeps_ones else random_hadamard
        matrix = make(key, size)
        for name, axis in turned:
            self.new[name] = _times(self._leaf(name), axis, matrix, parts.get(name))
        return RotatedAxes(
            axis_name(*turned[0]),
            size,
            tuple(axis_name(*member) for member in turned),
            tuple(name for name, _ in norms if name in folded),
            needs.keeps_ones,
            tuple(axis_name(*member) for member in turned if member[0] in parts),
        )

    def _leaf(self, name: str) -> Any:
        return self.new.get(name, self._scaling.leaf(name))

    def _multiplies(self, name: str) -> bool:
        """Whether a leaf is used as a scale only."""
        sites = self._traced.sites.of(name)
        return bool(sites) and all(
            site.operation is Operation.ELEMENTWISE and site.primitive in ("mul", "div")
            for site in sites
        )

    def _folded(self, norms: Members) -> dict[str, Any]:
        """The leaves that change when the scales of norms become 1."""
        scaling = self._scaling
        solution = scaling.found.solution
        logs = np.zeros(len(solution.roots))
        signs = np.ones(len(solution.roots))
        for name, axis in norms:
            value = np.asarray(self._leaf(name)).astype(np.float64)
            first = np.take(value, [0], axis)
            if (value == first).all():
                continue
            number = self._traced.names.index(name)
            term = scaling.found.leaves[number].outputs
            roots = None if term is None else solution.roots[term.ids]
            if term is None or roots is None or not roots.all():
                why = None if term is None else solution.why_zero(term.ids)
                raise CannotRotateError(
                    f"the scale {name} cannot go into what reads it: {why}"
                )
            if not value.all():
                raise CannotRotateError(f"the scale {name} holds zeros")
            exponents = term.counts * solution.ratios[term.ids]
            logs[roots] = -np.log(np.abs(value)) / exponents
            signs[roots] = np.sign(value)
        if not logs.any() and (signs == 1).all():
            return {}
        values = scaling.found.spread(logs)
        made = {}
        for number, name in enumerate(self._traced.names):
            change = np.exp(scaling.found.log_factor(number, values))
            change = change * self._sign(number, signs)
            if np.any(change != 1):
                leaf = self._leaf(name)
                one = np.asarray(leaf).astype(np.float64) * change
                made[name] = jnp.asarray(one.astype(np.float32)).astype(leaf.dtype)
        for name, axis in norms:
            value = np.asarray(made.get(name, self._leaf(name)))
            if not np.allclose(value, np.take(value, [0], axis), rtol=1e-5, atol=0):
                raise CannotRotateError(f"the scale {name} cannot become 1")
            if name in made:
                made[name] = jnp.ones_like(made[name])
        return made

    def _sign(self, number: int, signs: Floats) -> Any:
        """The sign by which a leaf changes, given those of the roots."""
        solution = self._scaling.found.solution
        total: Any = 1.0
        for term in self._scaling.found.leaves[number].terms:
            times = np.abs(term.counts * solution.ratios[term.ids])
            total = total * np.where(times == 1, signs[solution.roots[term.ids]], 1.0)
        return total


def _check_parts(turned: Members, parts: Mapping[str, Host], size: int) -> None:
    """Raise unless each vector is rotated as a whole or not at all."""
    for name, axis in turned:
        where = parts.get(name)
        if where is None or where.shape[axis] == 1:
            continue
        runs = np.moveaxis(where, axis, -1)
        runs = runs.reshape(-1, size)
        if (runs != runs[:, :1]).any():
            raise CannotRotateError(f"{name} holds parts of vectors")


def _times(leaf: Any, axis: int, matrix: Floats, where: Host | None) -> jax.Array:
    """A leaf with the vectors along an axis multiplied by a matrix from the right."""
    size = len(matrix)
    value = np.moveaxis(np.asarray(leaf).astype(np.float64), axis, -1)
    runs = value.reshape(-1, size) @ matrix
    made = np.moveaxis(runs.reshape(value.shape), -1, axis)
    if where is not None:
        made = np.where(where, made, np.asarray(leaf).astype(np.float64))
    return jnp.asarray(made.astype(np.float32)).astype(leaf.dtype)

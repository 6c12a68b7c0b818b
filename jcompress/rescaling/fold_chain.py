"""One fold: the weight, the shift and the neutral leaves of one product."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.rescaling.affine import Affine, AffineStep, Chain
from jcompress.rescaling.fold_factor import FoldFactor
from jcompress.rescaling.known import Host, Values
from jcompress.tensors import is_compressed
from jcompress.tracing.trace import Traced


@dataclasses.dataclass(frozen=True)
class Folded:
    """One weight that took in what followed its product.

    Attributes:
        weight: the name of the weight.
        bias: the name of the leaf that holds the whole shift; None if there is none.
        neutral: the names of the leaves that now do nothing.
    """

    weight: str
    bias: str | None
    neutral: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Neutral:
    """A leaf that does nothing, so that it need not be stored.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        value: what each of its entries is: 0, 1 or 1 - epsilon.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    value: float


class StaysError(Exception):
    """Why a chain is not folded."""


@dataclasses.dataclass(frozen=True)
class Made:
    """What folding one chain gives.

    Attributes:
        leaves: the leaves that change, by number.
        folded: what to tell of it.
        removed: the leaves that need not be stored.
        factor: what the weight is multiplied with, for other values of the leaves.
    """

    leaves: Mapping[int, Any]
    folded: Folded
    removed: Mapping[str, Neutral]
    factor: FoldFactor


class Attempt:
    """Folds one chain, or says why it cannot."""

    def __init__(self, traced: Traced, affine: Affine, chain: Chain) -> None:
        self._traced = traced
        self._used = affine.used
        (self._weight,) = chain.weight.leaves
        self.scaling = _leaves(chain, scales=True)
        self._chain = chain

    def fold(self) -> Made | None:
        """The new leaves; None if no leaf scales the product's result."""
        if not self.scaling:
            return None
        self._check_weight()
        self._cut()
        chain = self._chain
        scaling = _leaves(chain, scales=True)
        shifting = [n for n in _leaves(chain, scales=False) if n not in scaling]
        factor, shift = chain.total(Values(self._traced.leaves))
        new = {leaf: self._like(leaf, 0.0) for leaf in shifting}
        for step in chain.steps:
            if step.scales and step.by.leaves:
                new.update(self._neutral(step))
        left, rest = chain.total(self._with(new))
        with np.errstate(all="ignore"):
            share = np.broadcast_to(factor / left, chain.sizes)
        if not np.isfinite(share).all() or not np.isfinite(shift).all():
            raise StaysError("a factor is not finite or cannot be divided by")
        bias = None
        if not np.array_equal(shift, rest):
            bias, value = self._shift(new, shift)
            new[bias] = value
        new[self._weight] = self._scaled(share)
        self._verify(new, share, shift)
        return self._result(new, bias, (*scaling, *shifting), left)

    def _result(
        self,
        new: Mapping[int, Any],
        bias: int | None,
        leaves: Sequence[int],
        left: Host,
    ) -> Made:
        neutral = [leaf for leaf in leaves if leaf != bias]
        return Made(
            leaves=new,
            folded=Folded(
                self._name(self._weight),
                None if bias is None else self._name(bias),
                tuple(self._name(leaf) for leaf in neutral),
            ),
            removed={
                self._name(leaf): Neutral(
                    tuple(new[leaf].shape),
                    np.dtype(new[leaf].dtype),
                    float(np.asarray(new[leaf]).flat[0]),
                )
                for leaf in neutral
                if new[leaf].size
            },
            factor=self._factor(left),
        )

    def _factor(self, left: Host) -> FoldFactor:
        split, order, shape = self._by_leaf()
        steps = tuple(step for step in self._chain.steps if step.scales)
        return FoldFactor(
            leaves=tuple(map(self._name, _leaves(self._chain, scales=True))),
            shape=shape,
            _names=tuple(self._traced.names),
            _steps=steps,
            _left=np.broadcast_to(left, self._chain.sizes),
            _split=split,
            _order=order,
        )

    def _name(self, leaf: int) -> str:
        return self._traced.names[leaf]

    def _array(self, leaf: int) -> Host:
        return np.asarray(self._traced.leaves[leaf])

    def _like(self, leaf: int, value: float) -> jax.Array:
        struct = self._traced.sites.leaves[leaf][1]
        return jnp.full(struct.shape, value, struct.dtype)

    def _with(self, new: Mapping[int, Any]) -> Values:
        leaves = enumerate(self._traced.leaves)
        return Values([new.get(number, leaf) for number, leaf in leaves])

    def _check_weight(self) -> None:
        name = self._name(self._weight)
        leaf = self._traced.leaves[self._weight]
        if is_compressed(leaf):
            raise StaysError(
                f"{name} is already a {type(leaf).__name__}; fold, then compress"
            )
        if self._used[self._weight] != {self._chain.location}:
            raise StaysError(f"{name} is used elsewhere too")

    def _cut(self) -> None:
        """End the chain before a step whose leaves have other uses."""
        own = self._chain.places
        for number, step in enumerate(self._chain.steps):
            for leaf in step.by.leaves:
                value = self._traced.leaves[leaf]
                why = ""
                if is_compressed(value):
                    why = f"{self._name(leaf)} is a {type(value).__name__}"
                elif not jnp.issubdtype(value.dtype, jnp.floating):
                    why = f"{self._name(leaf)} is {value.dtype}"
                elif leaf == self._weight or self._used[leaf] - own:
                    why = f"{self._name(leaf)} is used elsewhere too"
                if why:
                    kept = self._chain.steps[:number]
                    self._chain = dataclasses.replace(self._chain, steps=kept)
                    if not _leaves(self._chain, scales=True):
                        raise StaysError(why)
                    return self._cut()
        return None

    def _neutral(self, step: AffineStep) -> dict[int, jax.Array]:
        """Values of the leaves of a factor that make it 1."""
        ones = {leaf: self._like(leaf, 1.0) for leaf in sorted(step.by.leaves)}
        base = step.vector(self._with(ones))
        roots: list[tuple[int, float]] = []
        for leaf in ones:
            four = {**ones, leaf: self._like(leaf, 4.0)}
            with np.errstate(all="ignore"):
                power = np.log(step.vector(self._with(four)) / base) / np.log(4)
            nearest = float(np.round(2 * power.flat[0]) / 2) if power.size else 0.0
            steady = np.all(np.abs(power - nearest) < 0.02)
            if not steady or abs(nearest) not in (0.5, 1.0):
                raise StaysError(
                    f"how the factor depends on {self._name(leaf)} is not known: it is "
                    "no scale, standard deviation or variance"
                )
            if abs(nearest) == 0.5:
                roots.append((leaf, nearest))
        if len(roots) == 1:
            # base = (1 + eps) ** power, so that 1 - eps in place of 1 gives 1.
            ((leaf, power_of),) = roots
            neutral = 2.0 - float(np.mean(base ** (1 / power_of)))
            if not 0.5 < neutral <= 1.5:
                raise StaysError(f"no {self._name(leaf)} makes its factor 1")
            ones[leaf] = self._like(leaf, neutral)
        return ones

    def _shift(self, new: Mapping[int, Any], shift: Host) -> tuple[int, jax.Array]:
        """The leaf that takes the whole shift, and its value."""
        for step in reversed(self._chain.steps):
            found = () if step.scales else sorted(step.by.leaves & new.keys())
            for leaf in found:
                made = self._solved(new, leaf, shift)
                if made is not None:
                    return leaf, made
        raise StaysError("no leaf that is added by channel can take the whole shift")

    def _solved(
        self, new: Mapping[int, Any], leaf: int, shift: Host
    ) -> jax.Array | None:
        """The value of a leaf that gives the whole shift; None if there is none."""
        given = self._array(leaf)

        def total(value: Any) -> Host:
            trial = jnp.asarray(value, given.dtype).reshape(given.shape)
            return self._chain.total(self._with({**new, leaf: trial}))[1]

        none = total(np.zeros(given.size))
        slope = total(np.ones(given.size)) - none
        if np.any(np.abs(slope) < 1e-3):
            return None
        # Which entry each channel reads, digit by digit, as any dtype holds them.
        numbers, places = np.arange(given.size), np.zeros(np.shape(shift), int)
        for digit in (64**n for n in range(4) if 64**n <= given.size):
            read = (total(numbers // digit % 64) - none) / slope
            places += digit * np.rint(read).astype(int)
        if places.min() < 0 or places.max() >= given.size:
            return None
        value = np.zeros(given.size)
        value[places] = (shift - none) / slope
        made = jnp.asarray(value.reshape(given.shape), given.dtype)
        return made if _close(total(made), shift, given.dtype) else None

    def _scaled(self, share: Host) -> jax.Array:
        """The weight times the factor of its channel."""
        leaf = self._array(self._weight)
        split, order, shape = self._by_leaf()
        by_leaf = np.transpose(share.reshape(split), order).reshape(shape)
        return jnp.asarray(leaf.astype(np.float64) * by_leaf, leaf.dtype)

    def _by_leaf(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """How an array by channel broadcasts against the weight: reshaped, transposed,
        and reshaped again."""
        chain = self._chain
        sizes = self._traced.sites.leaves[self._weight][1].shape
        views = self._traced.uses[chain.location].views[chain.operand]
        name = self._name(self._weight)
        if len(views) != 1:
            raise StaysError(f"{name} is not followed to its product")
        factors = [
            factor
            for _, axis in chain.channels
            for factor in views[0].dims[axis]
            if factor.size > 1
        ]
        axes = [factor.axis for factor in factors]
        whole = all(f.axis >= 0 and f.size == sizes[f.axis] for f in factors)
        if not whole or len(set(axes)) != len(axes):
            raise StaysError(f"only a part of {name} is in the product")
        order = np.argsort(np.asarray(axes, int), kind="stable")
        return (
            tuple(factor.size for factor in factors),
            tuple(map(int, order)),
            tuple(n if axis in axes else 1 for axis, n in enumerate(sizes)),
        )

    def _verify(self, new: Mapping[int, Any], share: Host, shift: Host) -> None:
        """Raise unless the new leaves give what the old ones gave."""
        chain, name = self._chain, self._name(self._weight)
        before = np.asarray(Values(self._traced.leaves)(chain.weight), np.float64)
        values = self._with(new)
        after = np.asarray(values(chain.weight), np.float64)
        axes = [axis for _, axis in chain.channels]
        order = np.argsort(np.asarray(axes, int), kind="stable")
        shape = [n if axis in axes else 1 for axis, n in enumerate(before.shape)]
        expected = before * np.transpose(share, order).reshape(shape)
        if not _close(after, expected, self._array(self._weight).dtype):
            raise StaysError(
                f"the product is not with {name} itself, but with what arithmetic "
                "makes of it"
            )
        dtypes = [self._array(leaf).dtype for leaf in new]
        loosest = max(dtypes, key=lambda dtype: float(jnp.finfo(dtype).eps))
        if not _close(chain.total(values)[1], shift, loosest):
            raise StaysError("the shift could not be kept")


def _leaves(chain: Chain, *, scales: bool) -> list[int]:
    found = (step.by.leaves for step in chain.steps if step.scales is scales)
    return sorted(frozenset[int]().union(*found))


def _close(found: Host, expected: Host, dtype: Any) -> bool:
    within = 64 * float(jnp.finfo(dtype).eps)
    largest = float(np.max(np.abs(expected), initial=0.0))
    return bool(np.all(np.abs(found - expected) <= within * largest))

"""Groups of coupled axes with fewer units: which go, and what that leaves."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.leaves import named_leaves
from jcompress.pruning.scores import score_by_magnitude
from jcompress.sensitivity.candidates import Candidate, Keep
from jcompress.shrinking import Groups, Plan, Width, score_units, zero_units
from jcompress.shrinking.choosing import ALL, resolve_widths


@dataclasses.dataclass(frozen=True)
class Widths:
    """The groups of a function that may shrink without another function.

    Attributes:
        params: the tree.
        groups: all groups.
        rules: how each of those that may shrink does.
    """

    params: Any
    groups: Groups
    rules: Mapping[str, Width]

    @classmethod
    def of(cls, params: Any, groups: Groups) -> "Widths":
        """Those groups over which nothing reduces."""
        free = any(group.reduced is None for group in groups)
        return cls(params, groups, resolve_widths(groups, ALL) if free else {})

    @functools.cached_property
    def _orders(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """The units of each group, the largest first."""
        scores = score_units(self.groups, score_by_magnitude(self.params))
        return {
            name: np.argsort(-np.asarray(scores[name]), kind="stable")
            for name in self.rules
        }

    def size(self, name: str, keep: Keep) -> int:
        """How many units of a group stay."""
        whole = self.groups[name].size
        return self.rules[name].rounded(keep.fraction * whole, whole)

    def plan(self, keeps: Mapping[str, Keep]) -> Plan | None:
        """The plan in which groups keep fractions of their units; None for no cut."""
        kept = {
            name: np.sort(self._orders[name][: self.size(name, keep)])
            for name, keep in keeps.items()
            if self.size(name, keep) < self.groups[name].size
        }
        return self.groups.keep(kept) if kept else None

    def zeroed(self, name: str, keep: Keep) -> dict[str, jax.Array]:
        """The leaves that a narrower group changes, zeros in place of its units."""
        plan = self.plan({name: keep})
        assert plan is not None
        own = {path: x for path, x in named_leaves(self.params) if path in plan.masks}
        return {path: jnp.asarray(x) for path, x in zero_units(own, plan).items()}

    def stored(
        self, candidates: Sequence[Candidate]
    ) -> dict[str, tuple[int | None, ...]]:
        """Bytes of the leaves that each group touches, at each width."""
        sizes = {
            path: int(np.prod(leaf.shape)) * leaf.dtype.itemsize
            for path, leaf in self.groups.sites.leaves
        }

        def left(name: str, each: Candidate) -> int | None:
            if not isinstance(each, Keep):
                return None
            group, size = self.groups[name], self.size(name, each)
            if size == group.size:
                return None
            total = 0
            for path in {member.path: None for member in group.members}:
                kept = 1.0
                for member in group.members:
                    if member.path == path:
                        own = float(np.mean(member.units >= 0))
                        kept *= 1 - own * (1 - size / group.size)
                total += round(sizes[path] * kept)
            return total

        return {
            name: tuple(left(name, each) for each in candidates) for name in self.rules
        }


def spread(small: Any, plan: Plan, path: str, shape: Sequence[int]) -> jax.Array:
    """A leaf of the smaller tree in its place in the whole one, zeros around it."""
    axes = plan.masks.get(path, {})
    if not axes:
        return jnp.asarray(small)
    places = [
        np.flatnonzero(axes[axis]) if axis in axes else np.arange(size)
        for axis, size in enumerate(shape)
    ]
    whole = np.zeros(tuple(shape), small.dtype)
    whole[np.ix_(*places)] = np.asarray(small)
    return jnp.asarray(whole)

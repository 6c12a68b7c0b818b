"""Mixes that were made and measured, each once."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jcompress.budget.layouts import Layout
from jcompress.budget.mixing import observed, stored_leaves
from jcompress.budget.pricing import Prices
from jcompress.conversion import replace_leaves
from jcompress.execution import compressed
from jcompress.leaves import named_leaves
from jcompress.sensitivity import Keep, OutputError
from jcompress.sensitivity.widths import spread
from jcompress.tensors import is_compressed


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tried:
    """A mix that was measured.

    Attributes:
        label: what it is: "mix", "int8", "width 0.5", "dense".
        layout: its widths.
        numbers: the candidate of each leaf.
        cost: what it costs, by the shapes of what is stored; of sparse leaves the most
            that they may take. Seconds are those of the products.
        predicted: the errors of its leaves and groups, added up.
        error: as measured; infinite if it is no number.
    """

    label: str
    layout: Layout
    numbers: Mapping[str, int]
    cost: float
    predicted: float
    error: float


class Mixes:
    """Makes mixes and measures their errors; what was made once serves all mixes.

    Attributes:
        tried: those that were measured, in their order.
    """

    def __init__(self, prices: Prices, measure: OutputError) -> None:
        self.tried: list[Tried] = []
        self._prices, self._measure = prices, measure
        self._made: dict[tuple[str, str, int], Any] = {}
        self._seen: dict[str, Mapping[str, jax.Array] | None] = {}

    def measure(
        self, label: str, layout: Layout, numbers: Mapping[str, int], predicted: float
    ) -> Tried:
        """Make it and measure it, unless that was done."""
        kept = {
            p: n for p, n in numbers.items() if self._prices.candidates[n] is not None
        }
        for one in self.tried:
            if one.layout is layout and one.numbers == kept:
                return one
        stored = self._stored(layout, kept)
        error = self._measure.together(
            self._prices.work.params, self._dense(layout, stored)
        )
        made = Tried(
            label=label,
            layout=layout,
            numbers=kept,
            cost=layout.cost(kept),
            predicted=predicted,
            error=error if math.isfinite(error) else math.inf,
        )
        self.tried.append(made)
        return made

    def realised(self, tried: Tried) -> tuple[Callable[..., Any], Any]:
        """The function and the tree of what was tried, as they are run."""
        work = tried.layout.work
        stored = self._stored(tried.layout, tried.numbers)
        fn = compressed(work.fn) if stored else work.fn
        return fn, replace_leaves(work.params, stored)

    def within(self, budget: float) -> list[Tried]:
        """All that was tried and costs no more, the least error first."""
        fits = [one for one in self.tried if one.cost <= budget * (1 + 1e-9)]
        return sorted(fits, key=lambda one: (one.error, one.cost))

    def moments(self, layout: Layout) -> Mapping[str, jax.Array] | None:
        """The second moments that the forms of a layout's leaves learn from."""
        key = repr(layout.keeps)
        if key not in self._seen:
            every = [
                each for each in self._prices.candidates if not isinstance(each, Keep)
            ]
            forms = dict.fromkeys(layout.costs, every)
            self._seen[key] = observed(layout.work, forms)
        return self._seen[key]

    def _stored(self, layout: Layout, numbers: Mapping[str, int]) -> dict[str, Any]:
        key = repr(layout.keeps)
        open_ones = {
            path: self._prices.candidates[n]
            for path, n in numbers.items()
            if (key, path, n) not in self._made
        }
        made = stored_leaves(layout.work, open_ones, self.moments(layout))
        for path, leaf in made.items():
            self._made[key, path, numbers[path]] = leaf
        return {path: self._made[key, path, n] for path, n in numbers.items()}

    def _dense(self, layout: Layout, stored: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The changed leaves in the whole model's shapes: one program runs them all."""
        plan = layout.plan
        whole = dict(named_leaves(self._prices.work.params))
        changed = {
            path: leaf.dense() if is_compressed(leaf) else leaf
            for path, leaf in stored.items()
        }
        if plan is None:
            return changed
        small = dict(named_leaves(layout.work.params))
        return {
            path: spread(changed.get(path, small[path]), plan, path, whole[path].shape)
            for path in {**changed, **plan.masks}
        }

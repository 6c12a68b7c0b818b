"""What a model costs with each choice of widths, and each leaf in each form."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.budget.held_out import is_batch
from jcompress.budget.layouts import Layout
from jcompress.models import Work
from jcompress.report import latency
from jcompress.sensitivity import Candidate, Keep
from jcompress.sensitivity.widths import Widths
from jcompress.shrinking import find_groups


class Prices:
    """What is paid for a model and the forms of its leaves, in one kind of cost.

    Attributes:
        work: the model.
        kind: "bytes", "multiplications" or "seconds".
        widths: the groups of axes that may shrink.
        candidates: those forms that suit a leaf or a group, and None at the end.
    """

    def __init__(self, work: Work, given: Sequence[Candidate], kind: str) -> None:
        self.work, self.kind = work, kind
        groups = find_groups(work.fn, work.params, *work.args)
        self.widths = Widths.of(work.params, groups)
        # A leaf that no form suits stays as it is: always the last candidate.
        every = [*(each for each in given if each is not None), None]
        self._overhead = 0.0
        first = Layout.of(work, {}, self.widths, every, "bytes")
        self.candidates: tuple[Candidate, ...] = tuple(
            each for n, each in enumerate(every) if self._suits(each, n, first)
        )
        self._layouts: dict[str, Layout] = {}
        if kind == "seconds":
            self._time_the_rest()

    def _suits(self, each: Candidate, n: int, layout: Layout) -> bool:
        if each is None:
            return True
        if isinstance(each, Keep):
            every = dict.fromkeys(self.widths.rules, each)
            return self.widths.plan(every) is not None
        return any(math.isfinite(row[n]) for row in layout.costs.values())

    def _time_the_rest(self) -> None:
        """The seconds of a call that are not those of its products."""
        alone = sum(row[-1] for row in self.layout({}).costs.values())
        whole = self.seconds(self.work.fn, self.work.params)
        self._overhead = max(0.0, whole - alone)
        self._layouts.clear()

    def seconds(self, fn: Callable[..., Any], params: Any) -> float:
        """The median time of a call on the example, here."""
        args = self.work.args
        turned = jax.tree.map(
            lambda x: jnp.roll(x, 1, axis=0) if is_batch(x) else x, args
        )
        found = latency(
            {"model": (fn, params), "again": (fn, params)}, [args, turned], rounds=11
        )
        return found.time("model").median

    @property
    def keeps(self) -> dict[int, Keep]:
        """The candidates that are widths, by number."""
        return {n: k for n, k in enumerate(self.candidates) if isinstance(k, Keep)}

    def layout(self, keeps: Mapping[str, Keep]) -> Layout:
        """The model with some widths; counted once."""
        key = repr(sorted(keeps.items(), key=lambda item: item[0]))
        if key not in self._layouts:
            self._layouts[key] = Layout.of(
                self.work,
                keeps,
                self.widths,
                self.candidates,
                self.kind,
                self._overhead,
            )
        return self._layouts[key]

    @functools.cached_property
    def least(self) -> float:
        """The least that any mix costs, from shapes (or times): nothing is run."""
        layouts = [self.layout({})]
        if self.keeps:
            smallest = min(self.keeps.values(), key=lambda keep: keep.fraction)
            layouts.append(self.layout(dict.fromkeys(self.widths.rules, smallest)))
        return min(each.least for each in layouts)

    @functools.cached_property
    def dense(self) -> float:
        """The cost of the model as it is."""
        return self.layout({}).cost({})

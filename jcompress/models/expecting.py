"""What a recipe will do to the speed of each leaf, before it is done."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jcompress.errors import MismatchError
from jcompress.models.adapting import as_function
from jcompress.models.steps import RulesStep, Step
from jcompress.models.work import Work
from jcompress.quantization import Quantize
from jcompress.report.text import leaf_table
from jcompress.rules import AnyOf, Rules, resolve
from jcompress.sensitivity import measure_seconds
from jcompress.sites import Site

_CLOSE = 0.05
"""Times that differ by less are called the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """How long the products of one leaf take, as it is and as the recipe would have it.

    Attributes:
        name: the leaf.
        dense: seconds in one call, as it is.
        small: seconds in one call, compressed.
    """

    name: str
    dense: float
    small: float

    @property
    def verdict(self) -> str:
        """ "faster", "the same" or "slower"."""
        ratio = self.small / self.dense
        if abs(ratio - 1) < _CLOSE:
            return "the same"
        return "faster" if ratio < 1 else "slower"


@dataclasses.dataclass(frozen=True)
class Expectation:
    """The leaves of a recipe; `print` shows the table.

    Attributes:
        leaves: one for each leaf that the recipe takes.
    """

    leaves: tuple[Expected, ...]

    @property
    def dense(self) -> float:
        """Seconds of all their products in one call, as they are."""
        return sum(leaf.dense for leaf in self.leaves)

    @property
    def small(self) -> float:
        """Seconds of all their products in one call, compressed."""
        return sum(leaf.small for leaf in self.leaves)

    def __str__(self) -> str:
        rows = [("leaf", "us dense", "us compressed", "change", "")]
        for leaf in self.leaves:
            rows.append(
                (
                    leaf.name,
                    f"{1e6 * leaf.dense:.1f}",
                    f"{1e6 * leaf.small:.1f}",
                    f"{leaf.small / leaf.dense:.2f}x",
                    leaf.verdict,
                )
            )
        table = leaf_table(rows, right=(1, 2, 3))
        return (
            f"{table}\nall products: {1e6 * self.dense:.1f} us dense, "
            f"{1e6 * self.small:.1f} us compressed;\n"
            "what lies between them stays as it is and is not in these times"
        )


def expect(model: Any, inputs: Any, *recipe: Step | Rules[Quantize]) -> Expectation:
    """Time each leaf's products as they are and as a recipe would have them, here.

    Nothing is compressed: each product, convolution and lookup is run by itself, on
    random numbers of its shapes, so it takes a few seconds for a model of some dozen
    layers. `compress` measures the whole.

    Args:
        model: as of `compress`.
        inputs: an example of what the model is called with, of the batch size that
            counts; a tuple for several arguments.
        *recipe: steps that quantize: `w8()`, `w4()`, `w8a8()`, or rules with
            `Quantize`.

    Raises:
        TypeError: the model is of no known kind.
        ValueError: no step quantizes; what others do is measured by `compress`.
        MismatchError: a step does not fit the model.
    """
    dense = as_function(model)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    work = Work(fn=dense.fn, params=dense.params, args=args)
    specs: dict[str, Quantize] = {}
    for given in recipe:
        step = given if isinstance(given, Step) else RulesStep(given=given)
        rules = step.rules(work)
        if rules:
            specs |= resolve(rules, work.sites, transform="expect").leaves
    if not specs:
        raise ValueError(
            "expect: no step of the recipe quantizes; compress(...) measures the time "
            "of what others make"
        )
    kinds: dict[Quantize, list[str]] = {}
    for path, spec in specs.items():
        kinds.setdefault(spec, []).append(path)
    found: dict[str, Sequence[float]] = {}
    for spec, paths in kinds.items():
        own = AnyOf(*map(_named, paths))
        found |= measure_seconds(
            dense.fn, dense.params, [None, spec], *args, leaves=own
        )
    order = [path for path in work.sites.weights if path in found]
    if not order:
        raise MismatchError("expect: no leaf that the recipe takes is used")
    return Expectation(
        tuple(
            Expected(name=path, dense=found[path][0], small=found[path][1])
            for path in order
        )
    )


def _named(path: str) -> Callable[[Site], bool]:
    return lambda site: site.path == path

"""The spec that pruning rules carry, and what a list of them means for a tree."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.allocation import Ranking
from jcompress.conversion import find_leaves, resolve_specs
from jcompress.errors import MismatchError
from jcompress.pruning.patterns import NM, Pattern, Unstructured
from jcompress.pruning.thresholds import Threshold
from jcompress.rules import Rules
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors.axes import Axes

Schedule = Callable[[Any], Any]
"""A function from the step to a value: any optax schedule."""

PRUNABLE = jnp.inexact
"""The kind of dtypes that can be pruned."""

Sparsity = float | jax.Array | Schedule
"""The fraction removed, in [0, 1): a number, a scalar array, or a schedule of it."""

Amount = Sparsity | Threshold
"""How much of its leaves a rule removes."""


@functools.cache
def _say_once(text: str) -> None:
    logging.getLogger("jcompress").warning(text)


NO_GAIN = (
    "the zeros of single weights are stored and multiplied like other numbers, so that "
    "nothing gets smaller or faster. What would: to_sparse, which stores them away "
    "(only CPUs run that faster); NM(2, 4) or Block((8, 8)) with to_sparse; or whole "
    "channels with jcompress.shrinking"
)


def _single_weights() -> Unstructured:
    """The pattern of a `Prune` that names none."""
    _say_once(
        f"Prune without a pattern removes single weights, and {NO_GAIN}. "
        "pattern=Unstructured() says that this is meant."
    )
    return Unstructured()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune:
    """How the leaves of a rule are pruned.

    Attributes:
        pattern: what is removed together. Left out it is single weights, whose zeros
            only CPUs run faster, and only after `to_sparse`; a line to the log
            "jcompress" then says so, once. `pattern=Unstructured()` says that it is
            meant.
        sparsity: the fraction of groups removed, in [0, 1), or an optax schedule of
            it; None takes the sparsity given to the transform. `NM` says by itself
            what it removes and needs none.
        threshold: instead of a sparsity: what scores less is removed.
        ranking: which groups compete: those of each leaf, so that every leaf reaches
            the sparsity; or those of all leaves of the rule, or of all that are used
            alike. The sparsity is then the fraction of all their groups; a leaf may
            lose more or less, and even all of its groups.

    Raises:
        TypeError: a field is of the wrong type.
        ValueError: a sparsity outside [0, 1), or one at odds with `NM`; `NM` with
            another ranking or a threshold, as it keeps n of every m everywhere; a
            sparsity and a threshold.
    """

    pattern: Pattern = dataclasses.field(default_factory=_single_weights)
    sparsity: float | Schedule | None = None
    threshold: Threshold | None = None
    ranking: Ranking = Ranking.UNIFORM

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Pattern):
            raise TypeError(
                f"Prune: the pattern is {self.pattern!r}; use Unstructured(), "
                "NM(2, 4), Block((4, 4)) or Channels()"
            )
        if self.threshold is not None:
            self._check_threshold()
        if not isinstance(self.ranking, Ranking):
            raise TypeError(
                f"Prune: the ranking is {self.ranking!r}; use Ranking.UNIFORM, "
                "Ranking.GLOBAL or Ranking.ISOMORPHIC of jcompress.allocation"
            )
        if isinstance(self.pattern, NM) and self.ranking is not Ranking.UNIFORM:
            raise ValueError(
                f"Prune: {self.pattern!r} keeps {self.pattern.n} of every "
                f"{self.pattern.m} in every leaf; leave the ranking out"
            )
        _check_sparsity("Prune", self.sparsity)
        if isinstance(self.pattern, NM) and _at_odds(self.sparsity, self.pattern):
            raise ValueError(
                f"Prune: {self.pattern!r} removes {self.pattern.sparsity:.6g}, but the "
                f"sparsity is {self.sparsity}; leave it out, or give a schedule that "
                "ends there"
            )

    def _check_threshold(self) -> None:
        if not isinstance(self.threshold, Threshold):
            raise TypeError(
                f"Prune: the threshold is {self.threshold!r}; use Threshold(0.01) of "
                "jcompress.pruning.thresholds"
            )
        if self.sparsity is not None:
            raise ValueError(
                f"Prune: the sparsity {self.sparsity} and {self.threshold!r} both say "
                "how much is removed; leave one out"
            )
        if isinstance(self.pattern, NM):
            raise ValueError(
                f"Prune: {self.pattern!r} keeps {self.pattern.n} of every "
                f"{self.pattern.m} in every leaf; leave the threshold out"
            )


@dataclasses.dataclass(frozen=True)
class PruningPlan:
    """Rules resolved against sites: everything that is known before any weight is.

    Attributes:
        transform: the caller's name, for the errors.
        sites: the sites.
        leaves: the spec of every leaf that is pruned, in tree order.
        rule_of: which rule took each of them.
        skipped: why each other weight is left alone.
        axes: the axes of every pruned leaf by role.
        shapes: the shape of every pruned leaf.
        amounts: what each rule removes.
        competing: the leaves of each rule, those together whose groups compete.
    """

    transform: str
    sites: Sites
    leaves: Mapping[str, Prune]
    rule_of: Mapping[str, int]
    skipped: Mapping[str, str]
    axes: Mapping[str, Axes]
    shapes: Mapping[str, tuple[int, ...]]
    amounts: Mapping[int, Amount]
    competing: Mapping[int, tuple[tuple[str, ...], ...]]

    @property
    def changes(self) -> bool:
        """Whether any amount may change from step to step."""
        return not all(isinstance(value, float) for value in self._values)

    @property
    def scheduled(self) -> bool:
        """Whether any amount is a schedule."""
        return any(map(callable, self._values))

    @property
    def _values(self) -> list[Any]:
        return [
            each.value if isinstance(each, Threshold) else each
            for each in self.amounts.values()
        ]

    def find(self, tree: Any) -> dict[str, Any]:
        """The arrays of a tree that the plan prunes, by name, in tree order.

        Raises:
            MismatchError: one is missing, compressed, of another shape or no float.
        """
        return find_leaves(
            self.transform,
            tree,
            self.leaves,
            sites=self.sites,
            advice="prune before converting",
            dtypes=PRUNABLE,
        )


def make_plan(
    rules: Rules[Prune], sites: Sites, sparsity: Sparsity | None, transform: str
) -> PruningPlan:
    """Resolve pruning rules, and raise whatever can be known to be wrong.

    Raises:
        TypeError: a spec is no `Prune`.
        MismatchError: a rule matches nothing, lacks a sparsity, does not fit a leaf
            that it matches, or would remove nothing.
    """
    resolved = resolve_specs(
        rules,
        sites,
        Prune,
        transform=transform,
        usage="Prune(...) or None",
        dtypes=PRUNABLE,
    )
    axes: dict[str, Axes] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    amounts: dict[int, Amount] = {}
    for path, spec in resolved.leaves.items():
        index = resolved.rule_of[path]
        uses = sites.of(path)
        shapes[path] = uses[0].shape
        axes[path] = leaf_axes(uses)
        if index not in amounts:
            amounts[index] = _amount(spec, sparsity, index, transform)
        try:
            spec.pattern.check(path, shapes[path], axes[path])
        except MismatchError as error:
            raise MismatchError(f"{transform}: {error}") from None
    competing: dict[int, tuple[tuple[str, ...], ...]] = {}
    for index, amount in amounts.items():
        paths = [path for path, rule in resolved.rule_of.items() if rule == index]
        spec = resolved.leaves[paths[0]]
        competing[index] = _competing(spec.ranking, paths, sites)
        if not isinstance(amount, float) or amount == 0:
            continue
        counts = [
            _group_count(spec, [(shapes[path], axes[path]) for path in each])
            for each in competing[index]
        ]
        if not any(spec.pattern.count(amount, count) for count in counts):
            raise MismatchError(
                f"{transform}: rule {index} removes nothing: sparsity {amount} of "
                f"at most {max(counts)} groups rounds to 0 in "
                f"{', '.join(paths)}; the least that acts is above "
                f"{0.5 / max(counts):.3g}"
            )
    return PruningPlan(
        transform=transform,
        sites=sites,
        leaves=resolved.leaves,
        rule_of=resolved.rule_of,
        skipped=resolved.skipped,
        axes=axes,
        shapes=shapes,
        amounts=amounts,
        competing=competing,
    )


def _competing(
    ranking: Ranking, paths: Sequence[str], sites: Sites
) -> tuple[tuple[str, ...], ...]:
    """The leaves of a rule, those together whose groups are ranked in one row."""
    classes: dict[Any, list[str]] = {}
    for path in paths:
        kind: Any = path
        if ranking is Ranking.GLOBAL:
            kind = None
        elif ranking is Ranking.ISOMORPHIC:
            kind = frozenset(
                (use.operation, use.stack_axes, use.output_axes, use.input_axes)
                for use in sites.of(path)
            )
        classes.setdefault(kind, []).append(path)
    return tuple(map(tuple, classes.values()))


def _group_count(spec: Prune, leaves: Sequence[tuple[tuple[int, ...], Axes]]) -> int:
    """How many groups of leaves compete in one row."""
    shapes = [spec.pattern.row_shape(shape, axes) for shape, axes in leaves]
    return shapes[0][1] if len(shapes) == 1 else sum(map(math.prod, shapes))


def _amount(
    spec: Prune, sparsity: Sparsity | None, index: int, transform: str
) -> Amount:
    if spec.threshold is not None:
        return spec.threshold
    amount: Sparsity | None = sparsity if spec.sparsity is None else spec.sparsity
    if amount is None:
        if isinstance(spec.pattern, NM):
            return spec.pattern.sparsity
        raise MismatchError(
            f"{transform}: rule {index} has no sparsity; give it one, "
            f"Prune(pattern={spec.pattern!r}, sparsity=0.5), or a threshold, or give "
            f"{transform} a sparsity"
        )
    _check_sparsity(f"{transform}: rule {index}", amount)
    if isinstance(spec.pattern, NM) and _at_odds(amount, spec.pattern):
        raise MismatchError(
            f"{transform}: rule {index}: {spec.pattern!r} removes "
            f"{spec.pattern.sparsity:.6g}, but the sparsity is {amount}; give its rule "
            f"a sparsity of its own, Prune(pattern={spec.pattern!r}, "
            f"sparsity={spec.pattern.sparsity:.6g}), or a schedule that ends there"
        )
    if isinstance(amount, jax.Array) or callable(amount):
        return amount
    return float(amount)


def _check_sparsity(what: str, sparsity: Any) -> None:
    """Raise unless it can be a sparsity.

    Raises:
        TypeError: it is no number, array or schedule.
        ValueError: it is out of range.
    """
    if sparsity is None or callable(sparsity):
        return
    if isinstance(sparsity, jax.Array):
        if sparsity.shape != () or not jnp.issubdtype(sparsity.dtype, jnp.floating):
            raise ValueError(
                f"{what}: the sparsity is an array of shape {sparsity.shape} and dtype "
                f"{sparsity.dtype}; it must be a float scalar"
            )
        return
    number = isinstance(sparsity, int | float | np.floating | np.integer)
    if not number or isinstance(sparsity, bool):
        raise TypeError(
            f"{what}: the sparsity is {sparsity!r}; use a number in [0, 1) or a "
            "schedule of it"
        )
    if not 0 <= sparsity < 1:
        raise ValueError(
            f"{what}: the sparsity is {sparsity}; it is the fraction removed, in [0, 1)"
        )


def _at_odds(sparsity: Any, pattern: NM) -> bool:
    """Whether a number is not what the pattern removes by itself."""
    if sparsity is None or callable(sparsity) or isinstance(sparsity, jax.Array):
        return False
    return not math.isclose(sparsity, pattern.sparsity)

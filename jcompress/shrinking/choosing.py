"""Which units go: costs of plans, and the plan that meets a target."""

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jcompress.allocation import Ranking
from jcompress.errors import MismatchError
from jcompress.rules import Rules, matches
from jcompress.shrinking.groups import Group, Groups
from jcompress.shrinking.plan import Plan
from jcompress.shrinking.scoring import Scores


class Cost(enum.Enum):
    """The quantity that a target limits, computed from shapes and dtypes."""

    PARAMETERS = "parameters"
    """Elements of all leaves."""
    MULTIPLICATIONS = "multiplications"
    """Those of the sites: products of a leaf with data, not of data with data."""
    BYTES = "bytes"
    """Of all leaves, in their dtypes."""

    def __repr__(self) -> str:
        return f"Cost.{self.name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Width:
    """How the groups of a rule may shrink.

    Attributes:
        multiple: sizes are rounded up to a multiple of this, which suits hardware (8,
            or 128 on TPUs); no group grows. None is 8 for a group of at least 32 units
            that are the only output axis of a layer, one position each, and 1 for all
            others (heads, layers of a scan, small widths).
        minimum: the fewest units that stay.
        reduced: take groups over which an operation reduces, too (`Group.reduced`),
            whose removal changes the function.

    Raises:
        ValueError: a number is below 1.
    """

    multiple: int | None = None
    minimum: int = 1
    reduced: bool = False

    def __post_init__(self) -> None:
        multiple = 1 if self.multiple is None else self.multiple
        if multiple < 1 or self.minimum < 1:
            raise ValueError(
                f"Width: multiple and minimum are at least 1, not {self.multiple!r} "
                f"and {self.minimum!r}"
            )

    def rounded(self, wanted: float, size: int) -> int:
        """The size of a group of `size` units that should keep `wanted`."""
        least = max(self.minimum, math.ceil(wanted - 1e-9))
        multiple = self.multiple or 1
        return min(size, math.ceil(least / multiple) * multiple)


ALL: Rules[Width] = ((..., Width()),)
"""Every group that does not change the function."""


def choose(
    groups: Groups,
    scores: Scores,
    rules: Rules[Width] = ALL,
    *,
    target: float,
    cost: Cost | Callable[[Plan], float] = Cost.PARAMETERS,
    ranking: Ranking = Ranking.UNIFORM,
) -> Plan:
    """The plan that removes the lowest scores until a target is met.

    Args:
        groups: the groups.
        scores: of every group that a rule takes, for example from `score_units`.
        rules: which groups shrink, and how; a predicate matches a group if it matches a
            site of one of its leaves. None as spec excludes.
        target: the fraction of the cost that may be left, in (0, 1).
        cost: what is counted; or a function that measures a plan, such as the latency
            of `shrunk(fn, plan)`, whose value at the full size is found by a plan that
            keeps all but one unit.
        ranking: which units compete.

    Returns:
        The plan with the most units left that meets the target.

    Raises:
        MismatchError: a rule takes no group.
        MismatchError: the target cannot be met, with what can; or a group has no
            scores, not one for each unit, or scores that are not numbers.
        ValueError: `target` is not between 0 and 1.
    """
    if not 0 < target < 1:
        raise ValueError(f"choose: the target is between 0 and 1, not {target!r}")
    widths = resolve_widths(groups, rules)
    missing = [name for name in widths if name not in scores]
    if missing:
        raise MismatchError(f"choose: the group {missing[0]!r} has no scores")
    for name in widths:
        check_scores(groups[name], scores[name], "choose")
    ranked = _ranked(groups, scores, widths, ranking)
    measure = static_cost(groups, cost) if isinstance(cost, Cost) else cost

    def plan(fraction: float) -> Plan | None:
        kept = ranked(fraction)
        if all(len(units) == groups[name].size for name, units in kept.items()):
            return None
        return groups.keep(kept)

    smallest = plan(0.0)
    if smallest is None:
        raise MismatchError("choose: the rules leave every group as it is")
    if isinstance(cost, Cost):
        whole = static_cost(groups, cost)(None)
    else:
        whole = cost(_nearly_whole(groups, widths, scores))
    reached = measure(smallest)
    if reached > target * whole:
        raise MismatchError(
            f"choose: the target {target} of {_named(cost)} cannot be met: with the "
            f"smallest sizes that the rules allow {reached / whole:.3f} is left"
        )
    low, high, best = 0.0, 1.0, smallest
    for _ in range(24 if isinstance(cost, Cost) else 8):
        middle = (low + high) / 2
        candidate = plan(middle)
        if candidate is not None and measure(candidate) <= target * whole:
            low, best = middle, candidate
        else:
            high = middle
    return best


def static_cost(groups: Groups, cost: Cost) -> Callable[[Plan | None], float]:
    """A function that counts what a plan leaves; None stands for the whole model."""
    leaves = dict(groups.sites.leaves)

    def left(path: str, plan: Plan | None) -> float:
        axes = {} if plan is None else plan.masks.get(path, {})
        return math.prod(float(np.mean(mask)) for mask in axes.values())

    def count(plan: Plan | None) -> float:
        if cost is Cost.MULTIPLICATIONS:
            return float(sum(s.total_macs * left(s.path, plan) for s in groups.sites))
        return float(of_leaves(plan))

    def of_leaves(plan: Plan | None) -> Any:
        return sum(
            math.prod(leaf.shape)
            * (leaf.dtype.itemsize if cost is Cost.BYTES else 1)
            * left(path, plan)
            for path, leaf in leaves.items()
        )

    return count


def check_scores(group: Group, given: Any, transform: str) -> None:
    """Raise MismatchError unless there is one number for each unit of a group."""
    scores = np.asarray(given)
    if scores.shape != (group.size,):
        raise MismatchError(
            f"{transform}: the scores of the group {group.name!r} have the shape "
            f"{list(scores.shape)}, and it has {group.size} units"
        )
    unordered = np.flatnonzero(np.isnan(scores))
    if unordered.size:
        raise MismatchError(
            f"{transform}: the scores of {unordered.size} units of the group "
            f"{group.name!r}, the first of them {unordered[0]}, are not numbers (NaN), "
            "so that no unit is the lowest"
        )


def _named(cost: Any) -> str:
    return cost.value if isinstance(cost, Cost) else "the measured cost"


def _nearly_whole(groups: Groups, widths: Mapping[str, Width], scores: Scores) -> Plan:
    """All but one unit of the largest group."""
    name = max(widths, key=lambda name: groups[name].size)
    order = np.argsort(-np.asarray(scores[name]), kind="stable")
    return groups.keep({name: np.sort(order[: max(1, len(order) - 1)])})


def resolve_widths(groups: Groups, rules: Rules[Width]) -> dict[str, Width]:
    """The groups that shrink, and how; the first rule that matches one decides.

    Args:
        groups: the groups.
        rules: as of `choose`.

    Raises:
        TypeError: a spec is no `Width`.
        MismatchError: a rule takes no group, or the rules leave none.
    """
    if not rules:
        raise MismatchError(
            "choose: rules are a list of pairs (predicate, Width() or None)"
        )
    taken: dict[str, Width | None] = {}
    for index, (predicate, width) in enumerate(rules):
        if width is not None and not isinstance(width, Width):
            raise TypeError(
                f"choose: rule {index} carries {width!r}; use Width() or None"
            )
        hits = [group for group in groups if _hit(groups, group, predicate)]
        if width is not None and not width.reduced:
            opt_in = [group for group in hits if group.reduced]
            hits = [group for group in hits if not group.reduced]
            if opt_in and not hits:
                raise MismatchError(
                    f"choose: rule {index} ({predicate!r}) matches only "
                    f"{opt_in[0].name!r}, over which {opt_in[0].reduced} reduces; "
                    "Width(reduced=True) shrinks it all the same"
                )
        if not hits:
            names = ", ".join(group.name for group in groups) or "none"
            raise MismatchError(
                f"choose: rule {index} ({predicate!r}) matches no group; the groups "
                f"are {names}"
            )
        for group in hits:
            taken.setdefault(group.name, width)
    found = {
        name: _with_multiple(groups, groups[name], width)
        for name, width in taken.items()
        if width is not None
    }
    if not found:
        raise MismatchError("choose: the rules exclude every group")
    return found


def _with_multiple(groups: Groups, group: Group, width: Width) -> Width:
    """The width of a rule with the multiple that suits a group."""
    if width.multiple is not None:
        return width
    channels = group.size >= 32 and any(
        tuple(site.output_axes) == (member.axis,) and len(member.units) == group.size
        for member in group.members
        for site in groups.sites.of(member.path)
    )
    return dataclasses.replace(width, multiple=8 if channels else 1)


def _hit(groups: Groups, group: Group, predicate: Any) -> bool:
    return any(
        matches(predicate, site)
        for member in group.members
        for site in groups.sites.of(member.path)
    )


def _ranked(
    groups: Groups,
    scores: Scores,
    widths: Mapping[str, Width],
    ranking: Ranking,
) -> Callable[[float], dict[str, Any]]:
    """The kept units of every group as a function of the fraction that stays."""
    orders = {
        name: np.argsort(-np.asarray(scores[name]), kind="stable") for name in widths
    }
    classes: dict[Any, list[str]] = {}
    for name in widths:
        kind: Any = name
        if ranking is Ranking.GLOBAL:
            kind = None
        elif ranking is Ranking.ISOMORPHIC:
            kind = _structure(groups, groups[name])
        classes.setdefault(kind, []).append(name)
    relative = {
        name: np.asarray(scores[name]) / max(float(np.mean(scores[name])), 1e-30)
        for name in widths
    }

    def kept(fraction: float) -> dict[str, Any]:
        found = {}
        for names in classes.values():
            if len(names) == 1:
                wanted = {names[0]: fraction * groups[names[0]].size}
            else:
                pool = np.concatenate([relative[name] for name in names])
                owner = np.repeat(names, [len(relative[name]) for name in names])
                stay = math.ceil(fraction * len(pool) - 1e-9)
                best = owner[np.argsort(-pool, kind="stable")[:stay]]
                wanted = {name: float((best == name).sum()) for name in names}
            for name, count in wanted.items():
                size = widths[name].rounded(count, groups[name].size)
                found[name] = np.sort(orders[name][:size])
        return found

    return kept


def _structure(groups: Groups, group: Group) -> Any:
    """What groups of the same kind have in common: operations and roles of axes."""
    roles = []
    for member in group.members:
        for site in groups.sites.of(member.path):
            role = "in" if member.axis in site.input_axes else "out"
            roles.append((site.operation.value, role))
    return tuple(sorted(roles))

"""Which leaves a transform acts on, and how: ordered pairs of predicate and spec."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any, Generic, TypeVar

from jcompress.errors import MismatchError
from jcompress.sites import WEIGHTS, Operation, Site, Sites

__all__ = [
    "AllOf",
    "AnyOf",
    "AtLeast",
    "Not",
    "Predicate",
    "Resolved",
    "Rules",
    "matches",
    "matches_name",
    "resolve",
]

Spec = TypeVar("Spec")

Predicate = str | Operation | EllipsisType | Callable[[Site], bool]
"""A path glob, an `Operation`, `...` (every weight) or a function of a `Site`.

In a glob `*` stays within one part of the path and `**` crosses parts:
`"params/Dense_*/kernel"`, `"**/kernel"`.
"""

Rules = Sequence[tuple[Predicate, Spec | None]]
"""Ordered pairs of a predicate and a spec; the first match wins.

The spec None says: leave these leaves alone.
"""


@dataclasses.dataclass(frozen=True)
class Not:
    """Matches the sites that `predicate` does not match."""

    predicate: Predicate

    def __post_init__(self) -> None:
        _check_predicate(self.predicate, "Not: its predicate")

    def __call__(self, site: Site) -> bool:
        """Whether it matches."""
        return not matches(self.predicate, site)


class _Predicates:
    def __init__(self, *predicates: Predicate) -> None:
        for predicate in predicates:
            _check_predicate(predicate, f"{type(self).__name__}: a predicate")
        self.predicates = predicates

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.predicates == other.predicates

    def __hash__(self) -> int:
        return hash((type(self), self.predicates))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.predicates))})"


class AllOf(_Predicates):
    """Matches the sites that every one of the predicates matches."""

    def __call__(self, site: Site) -> bool:
        """Whether it matches."""
        return all(matches(predicate, site) for predicate in self.predicates)


class AnyOf(_Predicates):
    """Matches the sites that at least one of the predicates matches."""

    def __call__(self, site: Site) -> bool:
        """Whether it matches."""
        return any(matches(predicate, site) for predicate in self.predicates)


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """Matches the leaves of at least `size` elements."""

    size: int

    def __call__(self, site: Site) -> bool:
        """Whether it matches."""
        return site.size >= self.size


def matches_name(glob: str, name: str) -> bool:
    """Whether a path glob matches a name of parts between slashes."""
    return _glob(glob).fullmatch(name) is not None


def matches(predicate: Predicate, site: Site) -> bool:
    """Whether a predicate matches a site."""
    if predicate is ...:
        return True
    if isinstance(predicate, Operation):
        return site.operation is predicate
    if isinstance(predicate, str):
        return matches_name(predicate, site.path)
    return bool(predicate(site))


def _glob(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    table = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    return re.compile("".join(table.get(part) or re.escape(part) for part in parts))


@dataclasses.dataclass(frozen=True)
class Resolved(Generic[Spec]):
    """Which leaf each rule takes, and why the others are left alone.

    Attributes:
        leaves: the spec of every leaf that is acted on, in tree order.
        rule_of: which rule, by its place in the list, took each of these leaves.
        skipped: why each other weight is left alone, and each other leaf of several
            axes (`Sites.left_alone`).
    """

    leaves: Mapping[str, Spec]
    rule_of: Mapping[str, int]
    skipped: Mapping[str, str]


def resolve(rules: Rules[Spec], sites: Sites, *, transform: str) -> Resolved[Spec]:
    """Match rules against a table of sites; the first match wins.

    A rule matches a leaf if it matches one of the sites at which the leaf is a weight
    (`jcompress.sites.WEIGHTS`); biases and scales are never candidates.

    Args:
        rules: the rules.
        sites: the table.
        transform: the caller's name, for the errors.

    Raises:
        TypeError: `rules` is not a sequence of pairs, a predicate is of no known kind,
            or a spec is a class.
        MismatchError: a rule matches no weight, only weights that earlier rules took,
            or nothing remains to be done.
    """
    rules = _checked(rules, transform)
    weights = [site for site in sites if site.operation in WEIGHTS]
    if not weights:
        raise MismatchError(
            f"{transform}: no leaf of the tree is a weight of a product, convolution "
            f"or lookup; the tree has {_listed([name for name, _ in sites.leaves])}"
        )
    taken: dict[str, int] = {}
    for index, (predicate, _) in enumerate(rules):
        hits = [site for site in weights if matches(predicate, site)]
        if not hits:
            raise MismatchError(_no_match(transform, index, predicate, sites))
        fresh = [site for site in hits if site.path not in taken]
        if not fresh:
            raise MismatchError(
                f"{transform}: rule {index} ({predicate!r}) matches only what earlier "
                f"rules already took: {_listed([site.path for site in hits])}; "
                "put it before them or delete it"
            )
        for site in fresh:
            taken[site.path] = index
    leaves: dict[str, Spec] = {}
    skipped: dict[str, str] = {}
    for name in sites.weights:
        if name not in taken:
            skipped[name] = "no rule matches it"
            continue
        predicate, spec = rules[taken[name]]
        if spec is None:
            skipped[name] = f"excluded by rule {taken[name]} ({predicate!r})"
        else:
            leaves[name] = spec
    if not leaves:
        raise MismatchError(
            f"{transform}: nothing to do, every weight is left alone: "
            + "; ".join(f"{name}: {why}" for name, why in skipped.items())
        )
    return Resolved(
        leaves=leaves,
        rule_of={name: taken[name] for name in leaves},
        skipped={**skipped, **sites.left_alone},
    )


def _checked(rules: Any, transform: str) -> Any:
    wrong = f"{transform}: rules are a list of pairs (predicate, spec)"
    if isinstance(rules, str | bytes) or not isinstance(rules, Sequence):
        raise TypeError(f"{wrong}, not {rules!r}")
    if not rules:
        raise MismatchError(f"{wrong}, and this list is empty; [(..., spec)] takes all")
    for index, rule in enumerate(rules):
        if not isinstance(rule, tuple) or len(rule) != 2:
            raise TypeError(f"{wrong}; rule {index} is {rule!r}")
        predicate, spec = rule
        _check_predicate(predicate, f"{transform}: the predicate of rule {index}")
        if isinstance(spec, type):
            raise TypeError(
                f"{transform}: the spec of rule {index} is the class {spec.__name__}; "
                f"give an object of it, {spec.__name__}(...)"
            )
    return rules


def _check_predicate(predicate: Any, what: str) -> None:
    """Raise TypeError unless rules can ask the predicate about a site."""
    if isinstance(predicate, str | Operation) or predicate is ...:
        return
    works = (
        'use a path glob ("**/kernel"), an Operation (Operation.CONV), ... for every '
        "weight, or a function of a Site (lambda site: site.size > 1000)"
    )
    if isinstance(predicate, type):
        raise TypeError(
            f"{what} is the class {predicate.__name__}, and rules know leaves by name "
            f"and use, not by class; {works}"
        )
    if not callable(predicate):
        raise TypeError(f"{what} is {predicate!r}; {works}")
    try:
        inspect.signature(predicate).bind(None)
    except TypeError:
        raise TypeError(
            f"{what} is {predicate!r}, which cannot be called with one Site alone; "
            f"{works}"
        ) from None
    except ValueError:
        # Some callables of C have no signature to ask for.
        return


def _no_match(transform: str, index: int, predicate: Any, sites: Sites) -> str:
    text = f"{transform}: rule {index} ({predicate!r}) matches no weight"
    others = [
        site.path
        for site in sites
        if site.operation not in WEIGHTS and matches(predicate, site)
    ]
    if others:
        return (
            f"{text}, only leaves that no product or lookup uses: {_listed(others)}; "
            f"the weights are {_listed(sites.weights)}"
        )
    if isinstance(predicate, str):
        unused = [name for name in sites.unused if matches_name(predicate, name)]
        if unused:
            return f"{text}, only leaves that meet no data: {_listed(unused)}"
    return f"{text}; the weights are {_listed(sites.weights)}"


def _listed(names: Sequence[str], most: int = 8) -> str:
    names = list(dict.fromkeys(names))
    more = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + more

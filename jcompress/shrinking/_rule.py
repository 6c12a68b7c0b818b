"""What a rule of an operation is, and the one for operations without their own."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jcompress.shrinking._ids import Why
from jcompress.shrinking._labels import Labels, fixed_labels
from jcompress.tracing.values import Location

if TYPE_CHECKING:
    from jcompress.shrinking._coupling import Coupling

Rule = Callable[["Coupling", Any, list[Labels], Why, Location], list[Labels]]
"""Moves ids through an equation, which stands at the location."""


def unknown(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    """The rule of an operation that has none of its own: its axes cannot shrink."""
    for value in ins:
        c.fix(value, why)
    return [fixed_labels(var) for var in eqn.outvars]

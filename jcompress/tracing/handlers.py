"""What a function transform gives to the interpreter: handlers and statistics."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jcompress.tracing.values import Use

Bind = Callable[[Sequence[Any]], list[Any]]


class Handler(Protocol):
    """What happens at a site in place of the traced equation."""

    def __call__(
        self, use: Use, inputs: list[Any], bind: Bind, read: Any
    ) -> tuple[list[Any], Any]:
        """Evaluate one equation.

        Args:
            use: the equation and its sites.
            inputs: its inputs: arrays, or `Deferred` for a compressed leaf.
            bind: evaluates the traced equation on arrays.
            read: what the caller of `evaluate` handed in for this site.

        Returns:
            The equation's results, and a statistic to hand back (None for none).
        """
        ...


class Joining(Protocol):
    """How statistics of several executions of one site become one."""

    def empty(self, like: Any) -> Any:
        """The statistic of no execution."""
        ...

    def join(self, a: Any, b: Any) -> Any:
        """The statistic of two sets of executions."""
        ...

    def reduce(self, stacked: Any) -> Any:
        """The statistic of executions numbered by a leading axis."""
        ...

    def across(self, value: Any, axis_names: tuple[str, ...]) -> Any:
        """The statistic of the executions on all devices along mesh axes."""
        ...

"""Values that all who read them get rounded: `Activation(shared=True)`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax

from jcompress.formats import NumberFormat
from jcompress.tensors.ranges import InputScale
from jcompress.tensors.rounding import fake_quantize
from jcompress.tensors.specs import Activation
from jcompress.tracing.interpreter import OnceMade
from jcompress.tracing.trace import Traced
from jcompress.tracing.values import Location, by_data


@dataclasses.dataclass(frozen=True)
class Shared:
    """How a value is rounded that all who read it get rounded.

    Attributes:
        location: of the product whose range it is.
        format: of the numbers.
    """

    location: Location
    format: NumberFormat

    def faked(self, x: jax.Array, scales: Mapping[Location, InputScale]) -> jax.Array:
        """The value as floats."""
        return fake_quantize(x, *scales[self.location], self.format)


class Rounds(Protocol):
    """A handler that rounds its data."""

    @property
    def activation(self) -> Activation | None:
        """How; None if it does not."""


def shared_data(
    traced: Traced, handlers: dict[Location, Any], reads: dict[Location, InputScale]
) -> dict[Location, dict[Any, Shared]]:
    """The values that all who read them get rounded, by the location of their program.

    Args:
        traced: the function.
        handlers: by location, some of them `Rounds`. All that share a value become
            the one of its first reader.
        reads: what they read; all that share a value get what the first one reads.
    """
    found: dict[Location, dict[Any, Shared]] = {}
    uses = [
        traced.uses[where]
        for where, handler in handlers.items()
        if handler.activation is not None
        and handler.activation.shared
        and where in reads
    ]
    for at, values in by_data(uses).items():
        for value, readers in values.items():
            first = readers[0].location
            handler = handlers[first]
            shared = Shared(first, handler.activation.format)
            found.setdefault(at, {})[value] = shared
            for use in readers:
                handlers[use.location] = handler
                reads[use.location] = reads[first]
    return found


def rounded_at_once(
    shared: Mapping[Location, Mapping[Any, Shared]],
    made: Mapping[Location, frozenset[Any]],
) -> dict[Location, dict[Any, OnceMade]]:
    """What rounds shared values as soon as they are there, for `Program.once_made`.

    Args:
        shared: as `shared_data` found them.
        made: the values that are rounded already, by the location of their program.
    """

    def rounds(one: Shared) -> OnceMade:
        return lambda x, reads: (one.faked(x, reads), {})

    return {
        at: {
            value: rounds(one)
            for value, one in values.items()
            if value not in made.get(at, ())
        }
        for at, values in shared.items()
    }

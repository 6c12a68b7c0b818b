"""The one resolver: which implementation of an operation runs."""

import enum
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Form = TypeVar("Form", bound=Callable[..., Any])


class Implementation(enum.Enum):
    """A way to compute an operation."""

    REFERENCE = "reference"
    """Plain float32 JAX that defines the operation; correct everywhere, not fast."""
    XLA = "xla"
    """The fastest form found that XLA compiles, by platform and shape."""

    def __repr__(self) -> str:
        return f"Implementation.{self.name}"


def resolve(
    operation: str,
    implementation: Implementation | None,
    forms: Mapping[Implementation, Form],
) -> Form:
    """The function that computes an operation.

    Args:
        operation: its name, for the errors.
        implementation: a named one runs or raises; None takes the best there is,
            which decides by platform when the program is lowered.
        forms: what the operation has.

    Raises:
        TypeError: `implementation` is of another kind.
        NotImplementedError: the operation has no such implementation.
    """
    if implementation is None:
        implementation = Implementation.XLA
    if not isinstance(implementation, Implementation):
        raise TypeError(
            f"{operation}: implementation is None or one of "
            f"{list(Implementation)}, not {implementation!r}"
        )
    if implementation not in forms:
        raise NotImplementedError(
            f"{operation} has no {implementation!r}; it has {list(forms)}"
        )
    return forms[implementation]

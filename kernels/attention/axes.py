"""Which axes of attention's operands belong together: its einsum notation, read."""

import collections
import dataclasses
import functools
import string
from collections.abc import Sequence
from typing import Any

from jax import export

NAME = "attention"
OPERANDS = ("q", "k", "v", "bias", "mask")

FEATURE, KEY, VALUE = "d", "s", "e"
"""What the three axes that have a role of their own are called; others are capitals."""


@dataclasses.dataclass(frozen=True)
class Axes:
    """The axes of a call, in letters that tell their roles.

    Attributes:
        operands: the letters of each array, "" for one left out too.
        result: those of the result.
    """

    operands: tuple[str, str, str, str, str]
    result: str

    @property
    def shared(self) -> str:
        """The letters of the result but the feature of the values."""
        return self.result.replace(VALUE, "")

    def sizes(self, arrays: Sequence[Any]) -> dict[str, Any]:
        """The size of each letter; 1 if all operands only repeat it."""
        found: dict[str, Any] = {}
        for letters, array in zip(self.operands, arrays, strict=True):
            if array is None:
                continue
            for letter, size in zip(letters, array.shape, strict=True):
                if found.get(letter, 1) == 1:
                    found[letter] = size
        return found

    def shape(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The shape of the result."""
        sizes = self.sizes(arrays)
        return tuple(sizes[letter] for letter in self.result)

    def notation(self, arrays: Sequence[Any]) -> str:
        """Einsum notation of the arrays that are there."""
        present = zip(self.operands, arrays, strict=True)
        return f"{','.join(o for o, a in present if a is not None)}->{self.result}"

    def mapped(self, over: Sequence[bool]) -> "Axes":
        """With one more axis, which leads the result and those operands."""
        used = set("".join(self.operands) + self.result)
        free = next(letter for letter in string.ascii_uppercase if letter not in used)
        first, second, third, fourth, fifth = (
            free + letters if here else letters
            for letters, here in zip(self.operands, over, strict=True)
        )
        return Axes((first, second, third, fourth, fifth), free + self.result)


def read(axes: str, arrays: Sequence[Any]) -> Axes:
    """Check a call's notation and the shapes of its arrays.

    Args:
        axes: einsum notation of the arrays that are there and the result.
        arrays: q, k, v, bias and mask; the last two may be None.

    Raises:
        ValueError: they do not fit together.
    """
    given = _parse(axes, tuple(a is not None for a in arrays))
    _check_shapes(given, arrays)
    return given


@functools.cache
def _parse(axes: str, present: tuple[bool, ...]) -> Axes:
    names = [name for name, there in zip(OPERANDS, present, strict=True) if there]
    operands, arrow, result = axes.replace(" ", "").partition("->")
    parts = operands.split(",")
    if not arrow or len(parts) != len(names):
        raise ValueError(
            f"{NAME}: axes is the letters of {', '.join(names)} -> the result, as "
            f"'bthd,bshd,bshe->bthe', not {axes!r}"
        )
    for name, letters in zip([*names, "the result"], [*parts, result], strict=True):
        twice = [c for c, n in collections.Counter(letters).items() if n > 1]
        if twice or any(c not in string.ascii_letters for c in letters):
            raise ValueError(
                f"{NAME}: the axes of {name} are different letters, not {letters!r}"
            )
    q, k, v, *others = map(set, parts)
    out, added = set(result), set[str]().union(*others)
    roles = {
        FEATURE: ("in q and k only, the feature", (q & k) - v - out - added),
        KEY: ("in k and v but not q or the result, the key", (k & v) - q - out),
        VALUE: ("in v and the result only", (v & out) - q - k - added),
    }
    for where, candidates in roles.values():
        if len(candidates) != 1:
            raise ValueError(
                f"{NAME}: one letter is {where}; in {axes!r} it is {sorted(candidates)}"
            )
    renamed = {only: role for role, (_, (only,)) in roles.items()}
    if not (q & out) - k - v:
        raise ValueError(f"{NAME}: no letter of {axes!r} is in q and the result only")
    capitals = iter(string.ascii_uppercase)
    for letter in result:
        if letter not in renamed:
            renamed[letter] = next(capitals, "")
    for number, letters in enumerate(parts):
        lost = [c for c in letters if c not in renamed]
        lost += [c for c in letters if number > 2 and renamed.get(c) == VALUE]
        if lost:
            raise ValueError(
                f"{NAME}: axes {lost} of {names[number]} in {axes!r} are neither of "
                "the result nor keys"
            )
    unknown = out - q - k - v - added
    if unknown or "" in renamed.values():
        raise ValueError(f"{NAME}: no operand of {axes!r} has {sorted(unknown)}")

    def of(letters: str) -> str:
        return "".join(renamed[c] for c in letters)

    rest = iter(parts)
    first, second, third, fourth, fifth = (
        of(next(rest)) if there else "" for there in present
    )
    return Axes((first, second, third, fourth, fifth), of(result))


def _check_shapes(axes: Axes, arrays: Sequence[Any]) -> None:
    for name, letters, array in zip(OPERANDS, axes.operands, arrays, strict=True):
        if array is not None and array.ndim != len(letters):
            raise ValueError(
                f"{NAME}: {name} has {len(letters)} axes in the notation and the shape "
                f"{list(array.shape)}"
            )
    sizes = axes.sizes(arrays)
    for name, letters, array in zip(OPERANDS, axes.operands, arrays, strict=True):
        if array is None:
            continue
        for place, (letter, size) in enumerate(zip(letters, array.shape, strict=True)):
            if size != 1 and size != sizes[letter]:
                raise ValueError(
                    f"{NAME}: axis {place} of {name} {list(array.shape)} is "
                    f"{sizes[letter]} in other operands (or 1, which repeats)"
                )


def symbolic(size: Any) -> bool:
    """Whether a size is not known yet."""
    return bool(export.is_symbolic_dim(size))

"""Which arrays are tied: blocks, or layers of stacked leaves, and their leaves."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jcompress.errors import MismatchError


@dataclasses.dataclass(frozen=True)
class TieBlocks:
    """Several subtrees, or leaves, with the same arrays.

    Attributes:
        blocks: the names of two or more subtrees with leaves of the same names and
            shapes, `("params/Block_0", "params/Block_3")`, or of leaves of one shape.
            The arrays of the first remain.

    Raises:
        TypeError: `blocks` is not a sequence of names.
        ValueError: there are fewer than two, or one is there twice.
    """

    blocks: tuple[str, ...]

    def __post_init__(self) -> None:
        given: Any = self.blocks
        if isinstance(given, str) or not all(isinstance(name, str) for name in given):
            raise TypeError(
                f"TieBlocks: blocks is {self.blocks!r}; give names of subtrees, "
                'TieBlocks(("params/Block_0", "params/Block_1"))'
            )
        names = tuple(name.strip("/") for name in self.blocks)
        object.__setattr__(self, "blocks", names)
        if len(set(names)) != len(names) or len(names) < 2:
            raise ValueError(f"TieBlocks: {names} are not two or more different blocks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TieLayers:
    """Layers of stacked leaves, as a `scan` over layers has them, with the same arrays.

    Attributes:
        below: the name of a subtree all of whose leaves are stacks of layers, or of
            one such leaf.
        groups: for each layer the number of the array that it uses, 0, 1, ... without
            a gap: `(0, 0, 1, 1)` shares neighbours, `(0, 1, 0, 1)` repeats a cycle.
        axis: which axis numbers the layers.

    Raises:
        ValueError: the numbers have a gap, or no two layers share one.
    """

    below: str
    groups: tuple[int, ...]
    axis: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "below", self.below.strip("/"))
        object.__setattr__(self, "groups", tuple(int(n) for n in self.groups))
        count = len(set(self.groups))
        if sorted(set(self.groups)) != list(range(count)):
            raise ValueError(
                f"TieLayers: groups {self.groups} of {self.below} are not numbered "
                "0, 1, ... without a gap"
            )
        if count == len(self.groups):
            raise ValueError(
                f"TieLayers: no two layers of {self.below} share an array in groups "
                f"{self.groups}"
            )


Tie = TieBlocks | TieLayers


@dataclasses.dataclass(frozen=True)
class TiePlan:
    """What ties mean for the leaves of a tree.

    Attributes:
        source: for each leaf that another one serves, the name of that one.
        layers: the spec of each leaf whose layers are tied.
    """

    source: Mapping[str, str]
    layers: Mapping[str, TieLayers]


def plan_ties(
    transform: str, ties: Sequence[Tie], leaves: Mapping[str, Any]
) -> TiePlan:
    """Match ties against the leaves of a tree, and refuse what does not fit."""
    if isinstance(ties, Tie) or not isinstance(ties, Sequence):
        raise TypeError(
            f"{transform}: ties are a list of TieBlocks and TieLayers, not {ties!r}"
        )
    if not ties:
        raise MismatchError(f"{transform}: there is no tie, so there is nothing to do")
    source: dict[str, str] = {}
    layers: dict[str, TieLayers] = {}
    taken: dict[str, int] = {}
    for number, spec in enumerate(ties):
        if not isinstance(spec, Tie):
            raise TypeError(
                f"{transform}: tie {number} is {spec!r}, no TieBlocks or TieLayers"
            )
        for path, first in _pairs(transform, spec, leaves):
            if path in taken:
                raise MismatchError(
                    f"{transform}: {path} is in tie {taken[path]} and in tie {number}; "
                    "list all that share its array in one tie"
                )
            taken[path] = number
            if isinstance(spec, TieLayers):
                layers[path] = spec
            elif path != first:
                source[path] = first
    return TiePlan(source, layers)


def _pairs(
    transform: str, spec: Tie, leaves: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """The name of every leaf of a tie, and of the leaf that serves it."""
    if isinstance(spec, TieLayers):
        for rest in _below(transform, spec.below, leaves):
            yield spec.below + rest, spec.below + rest
        return
    first, *others = spec.blocks
    names = _below(transform, first, leaves)
    for block in spec.blocks:
        if block.startswith(first + "/") or (block != first and first.startswith(
            block + "/"
        )):  # fmt: skip
            raise MismatchError(f"{transform}: {first} and {block} lie in one another")
    for rest in names:
        yield first + rest, first + rest
    for block in others:
        found = _below(transform, block, leaves)
        if set(found) != set(names):
            odd = sorted(set(found) ^ set(names))
            raise MismatchError(
                f"{transform}: {first} and {block} have different leaves: "
                f"{', '.join(rest.strip('/') for rest in odd[:6])} in one only"
            )
        for rest in names:
            yield block + rest, first + rest


def _below(transform: str, prefix: str, leaves: Mapping[str, Any]) -> list[str]:
    found = [
        name[len(prefix) :]
        for name in leaves
        if name == prefix or name.startswith(prefix + "/")
    ]
    if not found:
        raise MismatchError(
            f"{transform}: no leaf is named {prefix} or lies below it; the tree has "
            f"{', '.join(list(leaves)[:8])}"
        )
    return found

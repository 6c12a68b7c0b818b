"""Which convolutions and max pools of a program are evaluated together."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from jcompress.execution.after import Finished
from jcompress.execution.pools import Pool
from jcompress.fusion import Graph
from jcompress.tracing.jaxprs import is_literal


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """A convolution with what follows it, or a max pool.

    Attributes:
        data: the images that it reads.
        addend: what is added to a convolution's result; None for nothing.
        inputs: all that it reads; the first is `data`.
        result: what it makes.
        equations: those whose place it takes.
        of: the convolution or the pool.
    """

    data: Any
    addend: Any
    inputs: tuple[Any, ...]
    result: Any
    equations: frozenset[int]
    of: Finished | Pool

    @classmethod
    def convolution(cls, one: Finished) -> "Member":
        """A convolution of a compressed leaf."""
        numbers = frozenset({one.use.location[-1], *one.pattern.equations})
        return cls(
            one.inputs[0],
            one.pattern.addend,
            one.inputs,
            one.pattern.result,
            numbers,
            one,
        )

    @classmethod
    def pool(cls, one: Pool) -> "Member":
        """A max pool."""
        (data,), (result,) = one.eqn.invars, one.eqn.outvars
        return cls(data, None, (data,), result, frozenset({one.number}), one)

    @property
    def neighbours(self) -> tuple[Any, ...]:
        """What it reads that others of its kind may make."""
        every = (self.data, self.addend)
        return tuple(a for a in every if a is not None and not is_literal(a))


def groups(graph: Graph, members: Sequence[Member]) -> Iterator[list[Member]]:
    """Those that read each other's results, in the order of these.

    Of a group nothing that comes from outside depends on what the group makes.

    Args:
        graph: the program.
        members: of the program.
    """
    order = sorted(members, key=lambda one: graph.makers[one.result])
    behind = _behind(graph, order)
    own = {id(one): 1 << number for number, one in enumerate(order)}
    found: dict[Any, list[Member]] = {}
    for one in order:
        group = [one]
        for atom in one.neighbours:
            other = found.get(atom)
            if other is not None and other is not group and other[0] is not group[0]:
                together = [*other, *group]
                if _closed(together, behind, own):
                    group = together
        group.sort(key=lambda one: graph.makers[one.result])
        found.update(dict.fromkeys([each.result for each in group], group))
    seen: set[int] = set()
    for group in found.values():
        if id(group) not in seen:
            seen.add(id(group))
            yield group


def _behind(graph: Graph, members: Sequence[Member]) -> dict[Any, int]:
    """For each value the members that it depends on, a bit for each."""
    bits: dict[int, int] = {}
    for number, one in enumerate(members):
        first = one.of.number if isinstance(one.of, Pool) else one.of.use.location[-1]
        bits[first] = 1 << number
    found: dict[Any, int] = {}
    for number, eqn in enumerate(graph.body.jaxpr.eqns):
        mask = bits.get(number, 0)
        for atom in eqn.invars:
            if not is_literal(atom):
                mask |= found.get(atom, 0)
        found.update(dict.fromkeys(eqn.outvars, mask))
    return found


def _closed(
    group: Sequence[Member], behind: dict[Any, int], own: dict[int, int]
) -> bool:
    """Whether nothing comes back to a group that left it."""
    mask = sum(own[id(one)] for one in group)
    made = {one.result for one in group}
    return not any(
        behind.get(atom, 0) & mask
        for one in group
        for atom in one.inputs
        if not is_literal(atom) and atom not in made
    )

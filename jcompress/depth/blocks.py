"""Where a listed block lies in a traced function: what enters it and what leaves it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jcompress.errors import MismatchError
from jcompress.leaves import path_name
from jcompress.tensors import is_compressed
from jcompress.tracing.jaxprs import Body, Kind, bodies, is_literal, kind_of
from jcompress.tracing.trace import Traced
from jcompress.tracing.values import Location


def named(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their names; a compressed one is one leaf."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_compressed)
    return [(path_name(path), leaf) for path, leaf in flat]


def below(name: str, block: str) -> bool:
    """Whether a leaf lies below a block."""
    return name.startswith(block.rstrip("/") + "/")


def check_blocks(blocks: Sequence[str], names: Sequence[str], transform: str) -> None:
    """Raise MismatchError unless every block has a leaf and is named once."""
    if isinstance(blocks, str) or not blocks:
        raise MismatchError(f"{transform}: blocks are a list of names, not {blocks!r}")
    twice = [block for block in blocks if blocks.count(block) > 1]
    if twice:
        raise MismatchError(f"{transform}: the block {twice[0]!r} is named twice")
    for block in blocks:
        if not any(below(name, block) for name in names):
            tops = sorted({"/".join(name.split("/")[:2]) for name in names})
            raise MismatchError(
                f"{transform}: no leaf is below {block!r}; the tree has {tops}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passage:
    """Where a block, or a layer of a stack, lies.

    Attributes:
        place: the program that holds it.
        pairs: the values of that program that enter it, each with the one that leaves
            it in its stead.
        use: where one of its leaves meets data.
    """

    place: Location
    pairs: tuple[tuple[Any, Any], ...]
    use: Location


def find_block(traced: Traced, block: str, transform: str) -> Passage:
    """Where a block is, with the one value that enters it and the one that leaves it.

    Raises:
        MismatchError: it meets no data, or has no input like its output.
    """
    uses = [
        location
        for location, use in traced.uses.items()
        if any(below(site.path, block) for site in use.sites)
    ]
    if not uses:
        raise MismatchError(f"{transform}: the leaves below {block!r} meet no data")
    depth = 0
    while (
        all(len(use) > depth + 2 for use in uses)
        and len({use[: depth + 2] for use in uses}) == 1
        and not has_own_gradient(traced.body, uses[0][: depth + 1])
    ):
        depth += 2
    place = uses[0][:depth]
    body = body_at(traced.body, place)
    touched = sorted({use[depth] for use in uses})
    _check_alone(traced, block, uses, depth, transform)
    behind = [
        location[depth]
        for location in traced.uses
        if location[:depth] == place and location[depth] > touched[-1]
    ]
    region = Region(body, touched, min(behind, default=len(body.jaxpr.eqns)))
    for exit_ in region.exits():
        entry = region.entry(exit_)
        if entry is not None:
            return Passage(place=place, pairs=((entry, exit_),), use=uses[0])
    raise MismatchError(
        f"{transform}: the block {block!r} has no input of the shape and dtype of its "
        "output that nothing behind it uses, so that it cannot be left out"
    )


def body_at(body: Body, place: Location) -> Body:
    """The program that stands at a place within another."""
    for index in range(0, len(place), 2):
        body = bodies(body.jaxpr.eqns[place[index]])[place[index + 1]]
    return body


def equation_at(body: Body, location: Location) -> Any:
    """The equation that stands at a location within a program."""
    return body_at(body, location[:-1]).jaxpr.eqns[location[-1]]


def has_own_gradient(body: Body, at: Location) -> bool:
    """Whether the equation at a location has a gradient rule of its own."""
    return kind_of(equation_at(body, at)) is Kind.CUSTOM_GRADIENT


def _check_alone(
    traced: Traced, block: str, uses: Sequence[Location], depth: int, transform: str
) -> None:
    """An equation that cannot be opened must be the block's alone."""
    for at in {use[: depth + 1] for use in uses}:
        if not has_own_gradient(traced.body, at):
            continue
        for location, use in traced.uses.items():
            others = [s.path for s in use.sites if not below(s.path, block)]
            if location[: depth + 1] == at and others:
                raise MismatchError(
                    f"{transform}: the block {block!r} and {others[0]!r} are in one "
                    "function with a gradient rule of its own, which cannot be parted"
                )


class Region:
    """The equations of one program that a block's leaves have touched.

    Attributes:
        after: the values that depend on the block, in the order of execution.
    """

    def __init__(self, body: Body, touched: Sequence[int], stop: int) -> None:
        self._eqns = body.jaxpr.eqns
        self._last = touched[-1]
        self._stop = stop
        self._known: dict[Any, set[Any]] = {}
        self._uses: dict[Any, list[int]] = {}
        self._made: dict[Any, int] = {}
        for index, eqn in enumerate(self._eqns):
            for atom in eqn.invars:
                if not is_literal(atom):
                    self._uses.setdefault(atom, []).append(index)
            for var in eqn.outvars:
                self._made[var] = index
        for atom in body.jaxpr.outvars:
            if not is_literal(atom):
                self._uses.setdefault(atom, []).append(len(self._eqns))
        self.after: dict[Any, None] = {}
        self._inside: list[int] = []
        own = frozenset(touched)
        for index, eqn in enumerate(self._eqns):
            inside = index in own or any(
                not is_literal(atom) and atom in self.after for atom in eqn.invars
            )
            if inside:
                self._inside.append(index)
                self.after.update(dict.fromkeys(eqn.outvars))

    def exits(self) -> list[Any]:
        """The values through which everything behind the block passes, in order.

        Up to where another leaf meets data: that is no part of the block.
        """
        found = []
        live: dict[Any, None] = {}
        for index in self._inside:
            live.update(
                (var, None) for var in self._eqns[index].outvars if var in self._uses
            )
            live = {var: None for var in live if self._uses[var][-1] > index}
            if self._last <= index < self._stop and len(live) == 1:
                (var,) = live
                if var not in found:
                    found.append(var)
        return found

    def entry(self, exit_: Any) -> Any:
        """The value that can take the place of `exit_`; None if there is none."""
        end = self._made[exit_]
        crossing = {
            atom: None
            for index in self._inside
            if index <= end
            for atom in self._eqns[index].invars
            if not is_literal(atom) and atom not in self.after
        }
        like = (exit_.aval.shape, exit_.aval.dtype)
        wanted = [v for v in crossing if (v.aval.shape, v.aval.dtype) == like]
        origins = {v: self._origins(v) for v in wanted}
        candidates = sorted(
            {o for found in origins.values() for o in found},
            key=lambda v: self._made.get(v, -1),
            reverse=True,
        )
        for one in candidates:
            if (one.aval.shape, one.aval.dtype) != like:
                continue
            if not all(one in found for found in origins.values()):
                continue
            between = {
                value
                for found in origins.values()
                for value in found
                if one in self._origins(value)
            }
            if all(max(self._uses[value]) <= end for value in between):
                return one
        return None

    def _origins(self, var: Any) -> set[Any]:
        """A value and what it is made from."""
        if var in self._known:
            return self._known[var]
        found, waiting = {var}, [var]
        while waiting:
            index = self._made.get(waiting.pop())
            if index is None:
                continue
            for atom in self._eqns[index].invars:
                if not is_literal(atom) and atom not in found:
                    found.add(atom)
                    waiting.append(atom)
        self._known[var] = found
        return found

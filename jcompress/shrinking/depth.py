"""Leaving out whole blocks of a model whose blocks are listed one by one.

Blocks that a `scan` runs over are a group of `find_groups` and shrink like a width.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress._interpreter import Program
from jcompress._jaxprs import Body, bodies, is_literal
from jcompress._paths import path_name
from jcompress._trace import Traced, trace
from jcompress._values import Location
from jcompress.shrinking.plan import ShrinkError
from jcompress.tensors import CompressedTensor, is_compressed


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=(), meta_fields=("shape", "dtype")
)
@dataclasses.dataclass(frozen=True)
class Removed(CompressedTensor):
    """Stands for an array of a block that is left out; stores nothing.

    Attributes:
        shape: shape of the array.
        dtype: its dtype.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def dense(self) -> jax.Array:
        """There is none.

        Raises:
            ShrinkError: always.
        """
        raise ShrinkError(
            f"an array {np.dtype(self.dtype).name}{list(self.shape)} was removed with "
            "its block; run the function through skipped(fn, blocks)"
        )

    def unstack(self) -> None:
        """A loop cannot open it."""
        return None


def remove_blocks(variables: Any, blocks: Sequence[str]) -> Any:
    """Take the arrays of blocks out of a tree.

    Args:
        variables: the tree.
        blocks: names of subtrees, such as `params/Block_3`; every collection that has a
            block by that name below its own (`batch_stats/Block_3`) has to be named.

    Returns:
        The tree with a `Removed` in the place of each of their arrays.

    Raises:
        ShrinkError: a name has no leaf below it.
    """
    _check(blocks, [name for name, _ in _named(variables)], "remove_blocks")

    def change(path: Any, leaf: Any) -> Any:
        if not any(_below(path_name(path), block) for block in blocks):
            return leaf
        return Removed(tuple(leaf.shape), np.dtype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(change, variables, is_leaf=is_compressed)


def skipped(fn: Callable[..., Any], blocks: Sequence[str]) -> Callable[..., Any]:
    """Run a function without some of its blocks: what enters one leaves it unchanged.

    Where a block begins and ends is found in the traced function: it ends at the first
    value through which everything must pass that the block's leaves have touched, and
    begins at the value of the same shape and dtype from which the rest of its inputs
    comes and which nothing behind the block uses.

    Args:
        fn: the function.
        blocks: names of subtrees of its first argument, as of `remove_blocks`; blocks
            that follow on each other may be left out together.

    Returns:
        A function with the arguments of `fn`; its tree may hold anything, also
        `Removed`, in the place of the blocks' arrays. It raises ShrinkError for a block
        that changes the shape of what it gets, or that is not found.
    """

    @functools.wraps(fn)
    def run(variables: Any, *args: Any, **kwargs: Any) -> Any:
        traced = trace(fn, variables, args, kwargs)
        _check(blocks, list(traced.names), "skipped")
        bypass: dict[Any, Any] = {}
        places: set[Location] = set()
        for block in blocks:
            place, exit_, entry = _found(traced, block)
            bypass[exit_] = entry
            places.add(place)
        program = Program(
            traced=traced, handlers={}, bypass=bypass, opened=frozenset(places)
        )
        outs, _ = program(traced.leaves, traced.data)
        return traced.rebuild(outs)

    return run


def score_blocks(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    blocks: Sequence[str],
    distance: Callable[[Any, Any], Any] | None = None,
) -> dict[str, float]:
    """How much the result changes when one block is left out; the least goes first.

    Args:
        fn: the function.
        variables: its tree.
        *args: its other arguments: examples.
        blocks: the candidates.
        distance: `distance(result, result without the block)`: a number, such as the
            drop of a metric. By default 1 less the mean cosine of the two along the
            last axis, over the arrays of the result.

    Returns:
        A number by block.

    Raises:
        ShrinkError: as `skipped`.

    References:
        Men et al. 2024, "ShortGPT", equation 1, here of the final results.
    """
    measure = _one_less_cosine if distance is None else distance
    whole = fn(variables, *args)
    return {
        block: float(measure(whole, skipped(fn, [block])(variables, *args)))
        for block in blocks
    }


def merge_blocks(variables: Any, into: str, others: Sequence[str]) -> Any:
    """Put the mean of several like blocks into one of them.

    Args:
        variables: the tree.
        into: name of the block that gets the mean.
        others: names of the others, whose arrays stay; leave them out afterwards.

    Raises:
        ShrinkError: a name has no leaf below it, or the blocks differ.
    """
    named = dict(_named(variables))
    _check([into, *others], list(named), "merge_blocks")

    def change(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        if not _below(name, into):
            return leaf
        parts = [leaf]
        for other in others:
            twin = other + name[len(into) :]
            if twin not in named or named[twin].shape != leaf.shape:
                raise ShrinkError(
                    f"merge_blocks: {name!r} is {list(leaf.shape)}, and there is no "
                    f"{twin!r} of that shape"
                )
            parts.append(named[twin])
        return jnp.mean(jnp.stack(parts), axis=0).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(change, variables)


def _named(tree: Any) -> list[tuple[str, Any]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_compressed)
    return [(path_name(path), leaf) for path, leaf in flat]


def _below(name: str, block: str) -> bool:
    return name.startswith(block.rstrip("/") + "/")


def _check(blocks: Sequence[str], names: Sequence[str], transform: str) -> None:
    if isinstance(blocks, str) or not blocks:
        raise ShrinkError(f"{transform}: blocks are a list of names, not {blocks!r}")
    for block in blocks:
        if not any(_below(name, block) for name in names):
            tops = sorted({"/".join(name.split("/")[:2]) for name in names})
            raise ShrinkError(
                f"{transform}: no leaf is below {block!r}; the tree has {tops}"
            )


def _one_less_cosine(a: Any, b: Any) -> jax.Array:
    def one(a: Any, b: Any) -> jax.Array:
        a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
        long = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
        return jnp.mean(jnp.sum(a * b, axis=-1) / jnp.maximum(long, 1e-30))

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return 1 - jnp.mean(jnp.stack([one(a, b) for a, b in pairs]))


def _found(traced: Traced, block: str) -> tuple[Location, Any, Any]:
    """Where a block is, the value it ends with, and the one it begins with."""
    uses = [
        location
        for location, use in traced.uses.items()
        if any(_below(site.path, block) for site in use.sites)
    ]
    if not uses:
        raise ShrinkError(f"skipped: the leaves below {block!r} meet no data")
    depth = 0
    while (
        all(len(u) > depth + 2 for u in uses)
        and len({u[: depth + 2] for u in uses}) == 1
    ):
        depth += 2
    place = uses[0][:depth]
    body = _body(traced.body, place)
    touched = sorted({use[depth] for use in uses})
    behind = [
        location[depth]
        for location in traced.uses
        if location[:depth] == place and location[depth] > touched[-1]
    ]
    ends = _Region(body, touched, min(behind, default=len(body.jaxpr.eqns)))
    for exit_ in ends.exits():
        entry = ends.entry(exit_)
        if entry is not None:
            return place, exit_, entry
    raise ShrinkError(
        f"skipped: the block {block!r} has no input of the shape and dtype of its "
        "output that nothing behind it uses, so that it cannot be left out"
    )


def _body(body: Body, place: Location) -> Body:
    for index in range(0, len(place), 2):
        body = bodies(body.jaxpr.eqns[place[index]])[place[index + 1]]
    return body


class _Region:
    """The equations of one program that a block's leaves have touched."""

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
        # What depends on the block, in the order of execution.
        self._after: dict[Any, None] = {}
        self._inside: list[int] = []
        for index, eqn in enumerate(self._eqns):
            inside = index in set(touched) or any(
                not is_literal(atom) and atom in self._after for atom in eqn.invars
            )
            if inside:
                self._inside.append(index)
                self._after.update(dict.fromkeys(eqn.outvars))

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
            if not is_literal(atom) and atom not in self._after
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


def every(blocks: Sequence[str], *, keep: int) -> list[str]:
    """The blocks to leave out so that `keep` evenly spaced ones stay.

    A student that begins as every second layer of its teacher is
    `remove_blocks(teacher, every(blocks, keep=len(blocks) // 2))`.

    Raises:
        ValueError: `keep` is not from 1 to the number of blocks.

    References:
        Sanh et al. 2019, "DistilBERT", section 2.
    """
    if not 1 <= keep <= len(blocks):
        raise ValueError(f"every: keep is from 1 to {len(blocks)}, not {keep!r}")
    kept = {round(i * (len(blocks) - 1) / max(keep - 1, 1)) for i in range(keep)}
    return [block for number, block in enumerate(blocks) if number not in kept]

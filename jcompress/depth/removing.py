"""Leaving out whole blocks of a model whose blocks are listed one by one.

Blocks that a `scan` runs over are a group of `find_groups` and shrink like a width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jcompress.depth.blocks import below, check_blocks, find_block, named
from jcompress.leaves import path_name
from jcompress.tensors import RemovedArray, is_compressed
from jcompress.tracing.interpreter import Program
from jcompress.tracing.trace import trace
from jcompress.tracing.values import Location


def remove_blocks(variables: Any, blocks: Sequence[str]) -> Any:
    """Take the arrays of blocks out of a tree.

    Args:
        variables: the tree.
        blocks: names of subtrees, such as `params/Block_3`; every collection that has a
            block by that name below its own (`batch_stats/Block_3`) has to be named.

    Returns:
        The tree with a `RemovedArray` in the place of each of their arrays.

    Raises:
        MismatchError: a name has no leaf below it.
    """
    check_blocks(blocks, [name for name, _ in named(variables)], "remove_blocks")

    def change(path: Any, leaf: Any) -> Any:
        if not any(below(path_name(path), block) for block in blocks):
            return leaf
        return RemovedArray(tuple(leaf.shape), np.dtype(leaf.dtype))

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
        `RemovedArray`, in the place of the blocks' arrays. It raises MismatchError
        for a block that changes the shape of what it gets, or that is not found.
    """

    @functools.wraps(fn)
    def run(variables: Any, *args: Any, **kwargs: Any) -> Any:
        traced = trace(fn, variables, args, kwargs)
        check_blocks(blocks, list(traced.names), "skipped")
        bypass: dict[Any, Any] = {}
        places: set[Location] = set()
        for block in blocks:
            passage = find_block(traced, block, "skipped")
            bypass.update((exit_, entry) for entry, exit_ in passage.pairs)
            places.add(passage.place)
        program = Program(
            traced=traced, handlers={}, bypass=bypass, opened=frozenset(places)
        )
        outs, _ = program(traced.leaves, traced.data)
        return traced.rebuild(outs)

    return run


def leave_out_evenly(blocks: Sequence[str], *, keep: int) -> list[str]:
    """The blocks to leave out so that `keep` evenly spaced ones stay.

    A student that begins as every second layer of its teacher is
    `remove_blocks(teacher, leave_out_evenly(blocks, keep=len(blocks) // 2))`. Of a
    stack that a `scan` runs over it is `shrink(teacher, groups.keep({stack: range(0,
    layers, 2)}))`,
    the tree of the same model with half the layers.

    Raises:
        ValueError: `keep` is not from 1 to the number of blocks.

    References:
        Sanh et al. 2019, "DistilBERT", section 2.
    """
    if not 1 <= keep <= len(blocks):
        raise ValueError(f"every: keep is from 1 to {len(blocks)}, not {keep!r}")
    kept = {round(i * (len(blocks) - 1) / max(keep - 1, 1)) for i in range(keep)}
    return [block for number, block in enumerate(blocks) if number not in kept]

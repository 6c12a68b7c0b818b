"""Students that begin as a part of their teacher."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jcompress.depth import leave_out_evenly, remove_blocks, skipped
from jcompress.pruning.scores import score_by_magnitude
from jcompress.rules import Rules
from jcompress.shrinking import Plan, Width, find_groups, score_units, shrink, shrunk
from jcompress.shrinking.choosing import ALL, resolve_widths

__all__ = ["Student", "fewer_blocks", "narrower"]


class Student(NamedTuple):
    """A smaller model with the weights that it has from its teacher.

    Attributes:
        fn: a function with the arguments of the teacher's.
        params: its tree.
    """

    fn: Callable[..., Any]
    params: Any


def fewer_blocks(
    fn: Callable[..., Any], params: Any, blocks: Sequence[str], *, keep: int
) -> Student:
    """A student that begins as every second (or third, ...) block of its teacher.

    Args:
        fn: the teacher.
        params: its tree.
        blocks: names of the blocks in order, as of `jcompress.depth.remove_blocks`,
            `["params/Block_0", "params/Block_1", ...]`.
        keep: how many stay, evenly spaced, the first and the last among them.

    Raises:
        MismatchError: as `jcompress.depth.remove_blocks`; and, when the student is
            called, as `jcompress.depth.skipped`.
        ValueError: `keep` is not from 1 to the number of blocks.

    References:
        Sanh et al. 2019, "DistilBERT, a distilled version of BERT", section 2.
    """
    gone = leave_out_evenly(blocks, keep=keep)
    if not gone:
        return Student(fn, params)
    return Student(skipped(fn, gone), remove_blocks(params, gone))


def narrower(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    keep: float = 0.5,
    score: Callable[[Any], Any] = score_by_magnitude,
    rules: Rules[Width] = ALL,
) -> Student:
    """A student of half the width of its teacher, the most important units of each.

    Args:
        fn: the teacher.
        params: its tree.
        *args: further arguments to trace it with; shapes suffice.
        keep: the fraction of each width that stays, in (0, 1).
        score: makes scores of elements from the tree, as
            `jcompress.shrinking.score_units` wants them.
        rules: which widths shrink, as of `jcompress.shrinking.choose`.

    Raises:
        MismatchError: as `jcompress.shrinking.choose`; or nothing shrinks.
        ValueError: `keep` is not between 0 and 1.
    """
    plan = plan_narrower(fn, params, *args, keep=keep, score=score, rules=rules)
    return Student(shrunk(fn, plan), shrink(params, plan))


def plan_narrower(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    keep: float,
    score: Callable[[Any], Any] = score_by_magnitude,
    rules: Rules[Width] = ALL,
) -> Plan:
    """Which units `narrower` keeps."""
    if not 0 < keep < 1:
        raise ValueError(f"narrower: keep is between 0 and 1, not {keep!r}")
    groups = find_groups(fn, params, *args)
    scores = score_units(groups, score(params))
    kept = {}
    for name, width in resolve_widths(groups, rules).items():
        size = groups[name].size
        order = np.argsort(-np.asarray(scores[name]), kind="stable")
        kept[name] = np.sort(order[: width.rounded(keep * size, size)])
    return groups.keep(kept)

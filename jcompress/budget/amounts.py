"""What a budget is counted in, and how a model is counted."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.sensitivity.counting import share_multiplied
from jcompress.sites import find_sites
from jcompress.tensors import is_compressed


class BudgetError(MismatchError):
    """A budget that no mix meets; the message says the least possible."""


KINDS = ("bytes", "multiplications", "seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a model may take; exactly one of the three.

    Attributes:
        bytes: of all its leaves, as they are stored, biases and statistics included.
        multiplications: for one example, of data with stored weights: `multiplications`
            counts them. Those between data, as in attention, are not among them.
        seconds: of a call on the example, measured here.

    Raises:
        ValueError: not exactly one is given, or it is no positive number.
    """

    bytes: float | None = None
    multiplications: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"Budget: give one of {', '.join(KINDS)}, not {given or 'none'}"
            )
        if not 0 < self.amount < math.inf:
            raise ValueError(f"Budget: {self.kind} is above 0, not {self.amount!r}")

    @property
    def kind(self) -> str:
        """ "bytes", "multiplications" or "seconds"."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def amount(self) -> float:
        """The number."""
        return float(getattr(self, self.kind))

    def __str__(self) -> str:
        return told(self.kind, self.amount)


def told(kind: str, amount: float) -> str:
    """An amount as tables and errors write it."""
    if kind == "seconds":
        return f"{1e3 * amount:.3g} ms"
    return f"{amount:,.0f} {kind}"


def multiplications(fn: Callable[..., Any], params: Any, *args: Any) -> int:
    """Multiplications of data with stored weights, for one example.

    Factors count in place of their product, and sparse leaves with what they store;
    zeros that are stored are multiplied.

    Args:
        fn: the function of dense leaves; of a narrower model the narrower one
            (`jcompress.models.Compressed.plain`).
        params: its tree, compressed leaves included.
        *args: further arguments, arrays led by the batch.
    """
    leaves = dict(named_leaves(params))
    shapes = jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            if is_compressed(leaf)
            else leaf
        ),
        params,
        is_leaf=is_compressed,
    )
    sites = find_sites(fn, shapes, *args)
    total = sum(
        site.total_macs * share_multiplied(site.path, leaves[site.path], sites)
        for site in sites
    )
    return round(total / examples(args))


def examples(args: Any) -> int:
    """How many examples a batch has: the size of the first axis of the first array."""
    for leaf in jax.tree.leaves(args):
        if np.ndim(leaf) and hasattr(leaf, "dtype"):
            return max(1, int(leaf.shape[0]))
    return 1

"""The table of places in which a function's parameters meet its data."""

import dataclasses
import enum
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


class Operation(enum.Enum):
    """What a parameter leaf does at a site."""

    DOT = "dot"
    """Multiplied in `dot_general`: dense layers, einsums, attention projections."""
    CONV = "conv"
    """The kernel of `conv_general_dilated`."""
    LOOKUP = "lookup"
    """Rows are picked by an index: embeddings, tables of positions."""
    RAGGED_DOT = "ragged_dot"
    """Expert weights of a ragged product."""
    ELEMENTWISE = "elementwise"
    """Added, multiplied, ... element by element: biases, scales, statistics."""
    OPAQUE = "opaque"
    """Meets data in an operation that this library does not look into."""

    def __repr__(self) -> str:
        return f"Operation.{self.name}"


PRODUCTS = frozenset({Operation.DOT, Operation.CONV, Operation.RAGGED_DOT})
"""The operations that multiply a weight with data and sum the products."""

WEIGHTS = PRODUCTS | {Operation.LOOKUP}
"""The operations whose leaf is a weight: what pruning and quantization act on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """One use of one parameter leaf.

    Every axis of the leaf is in exactly one of `input_axes`, `output_axes` and
    `stack_axes`. An axis that is summed over in part (a merged axis of which only one
    factor is contracted) counts as an input axis.

    Attributes:
        path: the leaf's name, `params/Dense_0/kernel`.
        operation: what the leaf does here.
        primitive: the name of the JAX primitive.
        shape: the leaf's shape.
        dtype: the leaf's dtype.
        input_axes: axes of the leaf that are contracted; of a looked-up leaf, those
            that are taken whole.
        output_axes: axes of the leaf that appear in the result; of a looked-up leaf,
            the indexed ones.
        stack_axes: axes of the leaf that number independent copies: layers of a
            `scan`, experts of a batched product.
        window_axes: of a convolution, the input axes along which the kernel slides over
            the data, in the leaf's order; () for the other operations. An axis that
            was merged of the window and of input channels is among them.
        groups: of a convolution, how many groups its channels fall into; each output
            meets the input channels of its own group only.
        data_shape: shape of what the leaf meets, as one execution sees it.
        out_shape: shape of the result of one execution.
        macs: multiply-adds of one execution of the equation; with the zeros of a
            convolution's padding, without those of a dilated input. Those of one
            equation count once: where several leaves were made one weight before it,
            parts that stand beside each other have their own, and of leaves that were
            added the first has all. 0 for lookups and element-wise uses.
        runs: how often one call of the function executes it, on all devices of a
            `shard_map` together; None inside a `while` loop, whose trip count is
            not known.
        derived: the leaf was changed by arithmetic on the way here (weight
            standardisation, a mask), so what meets the data is not the leaf itself.
        in_custom_gradient: inside a function with a custom gradient (`jax.custom_vjp`,
            `jax.custom_jvp`), which transforms call as it is.
        location: where the equation stands in the traced function.
        operand: which input of the equation carries the leaf.
    """

    path: str
    operation: Operation
    primitive: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    input_axes: tuple[int, ...] = ()
    output_axes: tuple[int, ...] = ()
    stack_axes: tuple[int, ...] = ()
    window_axes: tuple[int, ...] = ()
    groups: int = 1
    data_shape: tuple[int, ...] = ()
    out_shape: tuple[int, ...] = ()
    macs: int = 0
    runs: int | None = 1
    derived: bool = False
    in_custom_gradient: bool = False
    location: tuple[int, ...] = ()
    operand: int = 0

    @property
    def size(self) -> int:
        """Number of elements of the leaf."""
        return math.prod(self.shape)

    @property
    def is_complex(self) -> bool:
        """Whether the leaf holds complex numbers."""
        return bool(np.issubdtype(self.dtype, np.complexfloating))

    @property
    def total_macs(self) -> int:
        """Multiplications of one call of the function; a `while` body counts once."""
        return self.macs * (1 if self.runs is None else self.runs)


@dataclasses.dataclass(frozen=True)
class Sites:
    """What `find_sites` found: every use of every leaf, in the order of execution.

    Iterates over, and indexes, its `Site`s; `print` shows the table.

    Attributes:
        table: the sites.
        leaves: name, shape and dtype of every array leaf of the tree, used or not.
    """

    table: tuple[Site, ...]
    leaves: tuple[tuple[str, jax.ShapeDtypeStruct], ...]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Site:
        return self.table[index]

    def of(self, path: str) -> tuple[Site, ...]:
        """The sites of one leaf."""
        return self._by_path.get(path, ())

    @functools.cached_property
    def _by_path(self) -> dict[str, tuple[Site, ...]]:
        found: dict[str, list[Site]] = {}
        for site in self.table:
            found.setdefault(site.path, []).append(site)
        return {path: tuple(sites) for path, sites in found.items()}

    def products(self, path: str) -> tuple[Site, ...]:
        """The products and convolutions of one leaf."""
        return tuple(site for site in self.of(path) if site.operation in PRODUCTS)

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the leaves that a product or a lookup uses, in tree order."""
        used = {site.path for site in self.table if site.operation in WEIGHTS}
        return tuple(name for name, _ in self.leaves if name in used)

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the leaves that meet no data."""
        used = {site.path for site in self.table}
        return tuple(name for name, _ in self.leaves if name not in used)

    @property
    def left_alone(self) -> dict[str, str]:
        """Why no rule reaches a leaf of several axes that is no weight, by its name.

        Tables of positions, class tokens, depthwise filters and splines that are
        written as element-wise products are such leaves; a bias, which has one axis,
        is not listed.
        """
        found: dict[str, str] = {}
        weights = set(self.weights)
        for site in self.table:
            if site.path in weights or sum(n != 1 for n in site.shape) < 2:
                continue
            why = f"`{site.primitive}` looks into it as no product or lookup does"
            if site.operation is Operation.ELEMENTWISE:
                why = f"`{site.primitive}` uses it element by element"
            found.setdefault(site.path, f"{why}, so no rule reaches it")
        return found

    @property
    def macs(self) -> int:
        """Multiply-adds of the products and convolutions of one call.

        Both branches of a `cond` count, the body of a `while` loop counts once.
        """
        return sum(site.total_macs for site in self.table)

    def below(self, prefix: str) -> "Sites":
        """The same table for the subtree `prefix`, whose leaves lose that prefix.

        `find_sites(model.apply, variables, x).below("params")` has the names of the
        tree that an optimizer is given.

        Raises:
            ValueError: no leaf is below `prefix`.
        """
        start = prefix.rstrip("/") + "/"
        leaves = tuple(
            (name[len(start) :], leaf)
            for name, leaf in self.leaves
            if name.startswith(start)
        )
        if not leaves:
            tops = sorted({name.split("/")[0] for name, _ in self.leaves})
            raise ValueError(f"no leaf is below {prefix!r}; the tree has {tops}")
        table = tuple(
            dataclasses.replace(site, path=site.path[len(start) :])
            for site in self.table
            if site.path.startswith(start)
        )
        return Sites(table, leaves)

    def __str__(self) -> str:
        head = ("leaf", "shape", "operation", "in", "out", "stack", "macs", "runs")
        rows = [
            (
                site.path,
                "x".join(map(str, site.shape)),
                site.operation.value + ("*" if site.derived else ""),
                _axes(site.input_axes),
                _axes(site.output_axes),
                _axes(site.stack_axes),
                f"{site.macs:,}",
                "?" if site.runs is None else str(site.runs),
            )
            for site in self.table
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
            for row in (head, *rows)
        ]
        for path, why in self.left_alone.items():
            lines.append(f"never compressed: {path}: {why}")
        if self.unused:
            lines.append("unused: " + ", ".join(self.unused))
        return "\n".join(line.rstrip() for line in lines)


def _axes(axes: tuple[int, ...]) -> str:
    return ",".join(map(str, axes)) or "-"

"""What `factorize` did: ranks, bytes and errors, and what was left alone."""

import dataclasses
from typing import Any

import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.low_rank.specs import Factoring, Svd
from jcompress.rules import Resolved, Rules, resolve
from jcompress.sites import Operation, Sites
from jcompress.tensors import LowRank


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactoredLeaf:
    """What `factorize` did to one leaf.

    Attributes:
        path: the leaf's name.
        shape: its shape.
        rule: which rule took it.
        spec: the spec of that rule.
        ranks: the sizes between its factors.
        before: bytes of the leaf.
        after: bytes of its factors.
        error: the relative error of the weight, `|W - W_r| / |W|`.
    """

    path: str
    shape: tuple[int, ...]
    rule: int
    spec: Factoring
    ranks: tuple[int, ...]
    before: int
    after: int
    error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorSummary:
    """What `factorize` did to a tree; `print` shows the table.

    Attributes:
        leaves: the factored leaves, in tree order.
        skipped: the names of the other weights, each with the reason.
    """

    leaves: tuple[FactoredLeaf, ...]
    skipped: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        head = ("leaf", "shape", "ranks", "rule", "bytes before", "after", "error")
        rows = [
            (
                leaf.path,
                "x".join(map(str, leaf.shape)),
                ",".join(map(str, leaf.ranks)),
                str(leaf.rule),
                f"{leaf.before:,}",
                f"{leaf.after:,}",
                f"{leaf.error:.4f}",
            )
            for leaf in self.leaves
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
            for row in (head, *rows)
        ]
        lines += [f"skipped {path}: {why}" for path, why in self.skipped]
        before = sum(leaf.before for leaf in self.leaves)
        after = sum(leaf.after for leaf in self.leaves)
        lines.append(f"{before:,} bytes became {after:,} (smaller)")
        return "\n".join(line.rstrip() for line in lines)


def summarize_factors(
    before: Any, after: Any, rules: Rules[Factoring], *, sites: Sites
) -> FactorSummary:
    """Say what `factorize` did, leaf by leaf. Not for traced functions.

    Args:
        before: the tree that it was given.
        after: the tree that it returned.
        rules: the rules that it was given.
        sites: the sites that it was given.

    Raises:
        MismatchError: a leaf that a rule takes is not factored in `after`.
    """
    resolved = check_factoring(sites, rules, transform="summarize_factors")
    old, new = dict(named_leaves(before)), dict(named_leaves(after))
    leaves = []
    for path, spec in resolved.leaves.items():
        leaf = new.get(path)
        if not isinstance(leaf, LowRank) or path not in old:
            raise MismatchError(
                f"summarize_factors: {path!r} is not factored in `after`; give what "
                "factorize returned for `before` and these rules"
            )
        dense = np.asarray(old[path], np.float64)
        error = np.linalg.norm(dense - np.asarray(leaf.dense(), np.float64))
        leaves.append(
            FactoredLeaf(
                path=path,
                shape=leaf.shape,
                rule=resolved.rule_of[path],
                spec=spec,
                ranks=leaf.ranks,
                before=np.asarray(old[path]).nbytes,
                after=leaf.stored_bytes,
                error=float(error / max(float(np.linalg.norm(dense)), 1e-300)),
            )
        )
    return FactorSummary(leaves=tuple(leaves), skipped=tuple(resolved.skipped.items()))


def check_factoring(
    sites: Sites, rules: Rules[Factoring], *, transform: str = "factorize"
) -> Resolved[Factoring]:
    """Match factoring rules against a table of sites; nothing is computed.

    Raises:
        TypeError: the rules are malformed, or a spec is of another kind.
        MismatchError: a rule matches no weight, or a spec for convolutions meets
            another operation.
    """
    resolved: Resolved[Factoring] = resolve(rules, sites, transform=transform)
    for path, spec in resolved.leaves.items():
        rule = resolved.rule_of[path]
        if not isinstance(spec, Factoring):
            raise TypeError(
                f"{transform}: the spec of rule {rule} is {spec!r}; a rule carries "
                "Svd(...), Spatial(...), Tucker(...) or Cp(...)"
            )
        uses = sites.products(path)
        only = {site.operation for site in uses} == {Operation.CONV}
        if not isinstance(spec, Svd) and not only:
            found = sorted({site.operation.value for site in sites.of(path)})
            raise MismatchError(
                f"{transform}: rule {rule} gives {path!r} a {type(spec).__name__}, "
                f"which splits the window of a convolution, and the leaf's uses are "
                f"{', '.join(found)}; use Svd(...)"
            )
    return resolved

"""What pruning did: densities before and after, and what was left alone."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.pruning.masks import apply_masks
from jcompress.pruning.optimizer import PruneState, check_removed
from jcompress.pruning.spec import Prune
from jcompress.rules import Rules, resolve
from jcompress.sites import Sites


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrunedLeaf:
    """What pruning did to one leaf.

    Attributes:
        path: the leaf's name.
        shape: its shape.
        rule: which rule took it.
        spec: how it is pruned.
        before: entries that are not zero without the mask.
        after: entries that are not zero with it.
        size: all entries.
    """

    path: str
    shape: tuple[int, ...]
    rule: int
    spec: Prune
    before: int
    after: int
    size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What pruning did to a tree; `print` shows the table.

    Attributes:
        leaves: the pruned leaves, in tree order.
        skipped: the names of the other weights, each with the reason.
    """

    leaves: tuple[PrunedLeaf, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def sparsity(self) -> float:
        """The fraction of the entries of the pruned leaves that are zero."""
        return 1 - sum(leaf.after for leaf in self.leaves) / sum(
            leaf.size for leaf in self.leaves
        )

    def __str__(self) -> str:
        head = ("leaf", "shape", "pattern", "rule", "density before", "after")
        rows = [
            (
                leaf.path,
                "x".join(map(str, leaf.shape)),
                repr(leaf.spec.pattern),
                str(leaf.rule),
                f"{leaf.before / leaf.size:.4f}",
                f"{leaf.after / leaf.size:.4f}",
            )
            for leaf in self.leaves
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
            for row in (head, *rows)
        ]
        lines += [f"skipped {path}: {why}" for path, why in self.skipped]
        lines.append(f"sparsity {self.sparsity:.4f} (simulated: same bytes and speed)")
        return "\n".join(line.rstrip() for line in lines)


def summarize(params: Any, masks: Any, rules: Rules[Prune], *, sites: Sites) -> Summary:
    """Say what masks do to parameters, leaf by leaf. Not for traced functions.

    Args:
        params: the parameters, masked already or not.
        masks: what `make_masks` returned, or the `PruneState` of a training with
            `prune`, which lets this check that what was removed is zero.
        rules: the rules that the masks were made with.
        sites: the sites that the masks were made with.

    Raises:
        MismatchError: the masks do not belong to these parameters and rules; or
            weights came back that `prune` had removed, since something changes the
            updates after it.
    """
    if isinstance(masks, PruneState):
        check_removed("summarize", params, masks)
        masks = masks.masks
    resolved = resolve(rules, sites, transform="summarize")
    before = dict(named_leaves(params))
    after = dict(named_leaves(apply_masks(params, masks)))
    masked = {name for name, _ in named_leaves(masks)}
    if masked != set(resolved.leaves):
        odd = sorted(masked ^ set(resolved.leaves))[0]
        where = "a mask but no rule" if odd in masked else "a rule but no mask"
        raise MismatchError(f"summarize: {odd!r} has {where}")
    leaves = tuple(
        PrunedLeaf(
            path=path,
            shape=tuple(before[path].shape),
            rule=resolved.rule_of[path],
            spec=spec,
            before=int(jnp.count_nonzero(before[path])),
            after=int(jnp.count_nonzero(after[path])),
            size=int(before[path].size),
        )
        for path, spec in resolved.leaves.items()
    )
    return Summary(leaves=leaves, skipped=tuple(resolved.skipped.items()))

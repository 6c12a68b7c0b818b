"""What pruning did: the table of changes, with what must be known about zeros."""

from typing import Any

from jcompress.conversion import Changes, describe_leaves, resolve_specs
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.pruning.masks import apply_masks
from jcompress.pruning.optimizer import PruneState
from jcompress.pruning.patterns import Unstructured
from jcompress.pruning.spec import NO_GAIN, PRUNABLE, Prune
from jcompress.pruning.zeros import LOST, check_removed, count_back
from jcompress.rules import Resolved, Rules
from jcompress.sites import Sites


def summarize(params: Any, masks: Any, rules: Rules[Prune], *, sites: Sites) -> Changes:
    """Say what masks do to parameters, leaf by leaf. Not for traced functions.

    The table of `jcompress.conversion.describe_changes` for the parameters before and
    after `apply_masks`: `Change.zeros_before` and `zeros_after` are the fractions of
    zeros, `Changes.sparsity` that of all pruned leaves together. Its notes say if
    weights are not zero that the masks remove, and what would run the zeros faster.

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

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.pruning import NM, make_masks
        >>> from jcompress.pruning.scores import score_by_magnitude
        >>> from jcompress.sites import find_sites
        >>> params = {"w": jnp.arange(1.0, 33.0).reshape(8, 4)}
        >>> sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 8)))
        >>> rules = [("w", Prune(pattern=NM(2, 4)))]
        >>> masks = make_masks(score_by_magnitude(params), rules, sites=sites)
        >>> print(summarize(apply_masks(params, masks), masks, rules, sites=sites))
        leaf  before       after  bytes  error   zeros  rule
        w     float32 8x4  same     128      0  50-50%  0
        128 bytes became 128 (simulated); 50.0% zeros
    """
    if isinstance(masks, PruneState):
        check_removed("summarize", params, masks)
        masks = masks.masks
    resolved = resolve_specs(
        rules,
        sites,
        Prune,
        transform="summarize",
        usage="Prune(...) or None",
        dtypes=PRUNABLE,
    )
    named = dict(named_leaves(masks))
    if set(named) != set(resolved.leaves):
        odd = sorted(set(named) ^ set(resolved.leaves))[0]
        where = "a mask but no rule" if odd in named else "a rule but no mask"
        raise MismatchError(f"summarize: {odd!r} has {where}")
    after = apply_masks(params, masks)
    return describe_leaves(
        params,
        after,
        rule_of=resolved.rule_of,
        reasons=resolved.skipped,
        made=resolved.leaves,
        notes=tuple(_notes(params, named, resolved)),
    )


def _notes(params: Any, masks: dict[str, Any], resolved: Resolved[Prune]) -> list[str]:
    notes = []
    present = dict(named_leaves(params))
    counts = {name: count_back(present[name], mask) for name, mask in masks.items()}
    back = {name: n for name, (n, _) in counts.items() if n}
    if back:
        gone = sum(n for _, n in counts.values())
        notes.append(
            f"{sum(back.values()):,} of the {gone:,} weights that the masks remove are "
            f"not zero in params, in {', '.join(list(back)[:4])}"
            f"{', ...' if len(back) > 4 else ''}; the table shows what apply_masks "
            f"makes of it. After a training with prune the zeros were lost. {LOST}"
        )
    single = sorted(
        {
            resolved.rule_of[name]
            for name, spec in resolved.leaves.items()
            if isinstance(spec.pattern, Unstructured)
        }
    )
    if single:
        notes.append(f"rule {', '.join(map(str, single))}: {NO_GAIN}")
    return notes

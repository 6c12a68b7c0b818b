"""Rules with a sparsity for each leaf, shared out by its shape or its sensitivity."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.allocation import Options, Ranking, allocate
from jcompress.errors import MismatchError
from jcompress.pruning.masks import apply_masks, make_masks
from jcompress.pruning.patterns import NM
from jcompress.pruning.scores import score_by_magnitude
from jcompress.pruning.spec import Prune, PruningPlan, Schedule, Sparsity, make_plan
from jcompress.rules import Rules
from jcompress.sites import Site, Sites

__all__ = ["share_by_sensitivity", "share_by_shape"]

OwnRules = list[tuple[Callable[[Site], bool], Prune | None]]
"""A rule for each leaf, that takes it by its name."""


def share_by_shape(
    rules: Rules[Prune], *, sites: Sites, sparsity: float | Schedule | None = None
) -> OwnRules:
    """Remove more from large leaves than from small ones (Erdos-Renyi-Kernel, ERK).

    Of a leaf with sizes n_1, n_2, ... (inputs, outputs, window) the fraction that stays
    is eps (n_1 + n_2 + ...) / (n_1 n_2 ...), with one eps for all leaves of a rule such
    that the rule's sparsity is that of all of them together. Leaves for which this
    would be above 1 stay whole, and the others lose so much more. Each leaf's count is
    rounded, so the total is met to half a group a leaf.

    Args:
        rules: as for `prune` and `make_masks`; a sparsity may be a schedule, and each
            leaf then has one of its own, with the same total at each step.
        sites: the sites of the function.
        sparsity: for rules that have none of their own.

    Returns:
        Rules for `prune` and `make_masks` with a sparsity for each leaf. A leaf that
        stays whole has the spec None.

    Raises:
        MismatchError: what `make_masks` raises; a rule of `NM`, with another ranking
            than `Ranking.UNIFORM`, with a threshold or with an array as its sparsity;
            or nothing would be removed.

    References:
        Mocanu et al. 2018, "Scalable Training of Artificial Neural Networks with
        Adaptive Sparse Connectivity inspired by Network Science" (Erdos-Renyi); Evci
        et al. 2020, "Rigging the Lottery", section 3 (with the kernel).

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.pruning import Prune, Unstructured
        >>> from jcompress.sites import find_sites
        >>> params = {"a": jnp.ones((100, 100)), "b": jnp.ones((100, 10))}
        >>> sites = find_sites(
        ...     lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 100)))
        >>> rules = [(..., Prune(pattern=Unstructured(), sparsity=0.8))]
        >>> shared = share_by_shape(rules, sites=sites)
        >>> [round(spec.sparsity, 3) for _, spec in shared]
        [0.858, 0.219]
    """
    name = "share_by_shape"
    plan = _checked(rules, sites, sparsity, name)
    made: dict[str, Any] = {}
    for index, amount in plan.amounts.items():
        paths = [path for path, rule in plan.rule_of.items() if rule == index]
        sizes = {path: math.prod(plan.shapes[path]) for path in paths}
        raw = {path: _wanted(plan, path) for path in paths}
        dense = _Dense.of([raw[p] for p in paths], [sizes[p] for p in paths])
        for path in paths:
            if callable(amount):
                made[path] = dense.schedule(raw[path], amount)
            else:
                assert isinstance(amount, float)
                made[path] = 1 - dense.keep(raw[path], amount, np)
    return _own_rules(plan, made)


def share_by_sensitivity(
    loss: Callable[..., Any],
    params: Any,
    rules: Rules[Prune],
    *,
    sites: Sites,
    sparsity: float | None = None,
    levels: Sequence[float] = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    score: Callable[[Any], Any] = score_by_magnitude,
) -> OwnRules:
    """Remove more from leaves whose loss is little hurt by it, as measured.

    Each leaf is pruned alone to each level, and the loss is measured. Then
    `jcompress.allocation.allocate` takes one level for each leaf such that the rises of
    the loss add up to as little as the rule's sparsity allows.

    Args:
        loss: takes the parameters, and gives a number, the lower the better; jit it.
        params: the parameters.
        rules: as for `make_masks`, with numbers as sparsities.
        sites: the sites of the function.
        sparsity: for rules that have none of their own.
        levels: sparsities to try, in [0, 1).
        score: how the weights of a leaf are ranked: takes the parameters and gives
            their scores.

    Returns:
        Rules for `prune` and `make_masks` with a sparsity for each leaf. A leaf that
        stays whole has the spec None. At least the sparsity asked for is removed in
        all, but for the rounding of levels to groups.

    Raises:
        ValueError: a level outside [0, 1), or a loss that is not finite.
        MismatchError: as `share_by_shape`; a schedule; or not even the highest level
            in all leaves reaches the sparsity.
    """
    name = "share_by_sensitivity"
    tried = sorted({float(level) for level in levels} | {0.0})
    if not all(0 <= level < 1 for level in tried):
        raise ValueError(f"{name}: levels are in [0, 1), not {list(levels)}")
    plan = _checked(rules, sites, sparsity, name)
    for index, amount in plan.amounts.items():
        if not isinstance(amount, float):
            raise MismatchError(
                f"{name}: the sparsity of rule {index} is a schedule; give a number"
            )
        if amount > tried[-1]:
            raise MismatchError(
                f"{name}: rule {index} removes {amount}, more than the highest of the "
                f"levels, {tried[-1]}; add a level above"
            )
    scores = score(params)
    whole = _finite(name, loss(params))
    options: dict[str, Options] = {}
    for path, spec in plan.leaves.items():
        errors, costs = [0.0], [float(math.prod(plan.shapes[path]))]
        for level in tried[1:]:
            single: Any = [(_only(path), dataclasses.replace(spec, sparsity=level))]
            if not _acts(plan, path, level):
                errors.append(errors[-1])
                costs.append(costs[-1])
                continue
            masks = make_masks(scores, single, sites=sites)
            after = _finite(name, loss(apply_masks(params, masks)))
            errors.append(after - whole)
            costs.append(math.prod(plan.shapes[path]) * (1 - level))
        options[path] = Options(costs=costs, errors=errors)
    made: dict[str, Any] = {}
    for index, amount in plan.amounts.items():
        paths = [path for path, rule in plan.rule_of.items() if rule == index]
        total = sum(math.prod(plan.shapes[path]) for path in paths)
        assert isinstance(amount, float)
        budget = total * (1 - amount) * (1 + 1e-9)
        chosen = allocate({path: options[path] for path in paths}, budget).chosen
        made |= {path: tried[option] for path, option in chosen.items()}
    return _own_rules(plan, made)


def _checked(
    rules: Rules[Prune], sites: Sites, sparsity: Sparsity | None, name: str
) -> PruningPlan:
    plan = make_plan(rules, sites, sparsity, name)
    for path, spec in plan.leaves.items():
        index = plan.rule_of[path]
        amount = plan.amounts[index]
        if isinstance(spec.pattern, NM):
            wrong = f"{spec.pattern!r}, which removes the same from each leaf"
        elif spec.ranking is not Ranking.UNIFORM:
            wrong = f"{spec.ranking!r}, which shares out by scores; leave it out"
        elif spec.threshold is not None:
            wrong = f"{spec.threshold!r}, and there is no total to share out"
        elif isinstance(amount, jax.Array):
            wrong = "an array as sparsity; give a number or a schedule"
        else:
            continue
        raise MismatchError(f"{name}: rule {index} ({path!r}) has {wrong}")
    return plan


@dataclasses.dataclass(frozen=True)
class _Dense:
    """Which eps keeps how much of several leaves, of which none keeps more than all.

    Attributes:
        kept: the fraction of all entries that stays, where one more leaf becomes whole,
            increasing, from 0.
        eps: there.
    """

    kept: np.ndarray[Any, Any]
    eps: np.ndarray[Any, Any]

    @classmethod
    def of(cls, raw: Sequence[float], sizes: Sequence[int]) -> "_Dense":
        """Of leaves that keep `min(1, eps raw)` of their sizes."""
        fractions = np.array(sizes, np.float64) / sum(sizes)
        ends = np.array([0.0, *sorted({1 / each for each in raw})])
        wanted = np.minimum(1, ends[:, None] * np.array(raw)[None, :])
        return cls(wanted @ fractions, ends)

    def keep(self, raw: float, sparsity: Any, numpy: Any) -> Any:
        """The fraction of a leaf that stays at a sparsity of all."""
        kept, eps = numpy.asarray(self.kept), numpy.asarray(self.eps)
        found = numpy.interp(1 - sparsity, kept, eps)
        return numpy.minimum(1.0, found * raw)

    def schedule(self, raw: float, total: Schedule) -> Schedule:
        """The sparsity of a leaf over the steps."""
        kept, eps = (x.astype(np.float32) for x in (self.kept, self.eps))
        rounded = _Dense(kept, eps)

        def own(step: Any) -> jax.Array:
            sparsity = jnp.asarray(total(step), jnp.float32)
            stays: jax.Array = rounded.keep(raw, sparsity, jnp)
            return 1 - stays

        return own


def _wanted(plan: PruningPlan, path: str) -> float:
    """The sum of a leaf's sizes over their product, those of one copy."""
    axes, shape = plan.axes[path], plan.shapes[path]
    sites = plan.sites.of(path)
    window = {axis for site in sites for axis in site.window_axes}
    sizes = [shape[axis] for axis in sorted(window)]
    rest = [axis for axis in axes.input if axis not in window]
    sizes += [math.prod(shape[axis] for axis in part) for part in (rest, axes.output)]
    return sum(sizes) / math.prod(sizes)


def _acts(plan: PruningPlan, path: str, sparsity: float) -> bool:
    pattern = plan.leaves[path].pattern
    groups = pattern.row_shape(plan.shapes[path], plan.axes[path])[1]
    return bool(pattern.count(sparsity, groups))


def _own_rules(plan: PruningPlan, sparsities: Mapping[str, Any]) -> OwnRules:
    rules: OwnRules = []
    for path, spec in plan.leaves.items():
        own = sparsities[path]
        if callable(own) or _acts(plan, path, own := float(own)):
            rules.append((_only(path), dataclasses.replace(spec, sparsity=own)))
        else:
            rules.append((_only(path), None))
    if all(spec is None for _, spec in rules):
        raise MismatchError(
            f"{plan.transform}: nothing would be removed from "
            f"{', '.join(plan.leaves)}; raise the sparsity"
        )
    return rules


def _only(path: str) -> Callable[[Site], bool]:
    def own(site: Site) -> bool:
        return site.path == path

    return own


def _finite(name: str, value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: the loss is {number}")
    return number

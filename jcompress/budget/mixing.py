"""`Mix`: the step that a search ends with: widths, and a form for each leaf."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.conversion import replace_leaves
from jcompress.leaves import named_leaves
from jcompress.models import Step, Work
from jcompress.models.storing import quantized
from jcompress.pruning.one_shot import OneShot
from jcompress.quantization import Quantize, Weights
from jcompress.rules import Rules
from jcompress.sensitivity import Candidate
from jcompress.sensitivity.candidates import (
    for_leaf,
    learns_here,
    name_of,
    only,
)
from jcompress.sensitivity.making import made
from jcompress.shrinking import Plan, shrink, shrunk
from jcompress.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Mix(Step):
    """Units go first; then each leaf takes its own form. A step for `compress`.

    If `train` or `distil` follow, removed weights stay zero in them, factors learn, and
    what will be quantized is rounded to the nearest.

    Attributes:
        forms: what becomes of each leaf, by name: formats, sparsities, ranks. Others
            stay as they are.
        plan: which units stay, or None.
    """

    forms: Mapping[str, Candidate]
    plan: Plan | None = None

    def apply(self, work: Work) -> Work:
        """Cut, then convert; what learns does so from the data, as floats."""
        work = narrowed(work, self.plan)
        moments = observed(work, self.forms)
        if work.trains:
            return trainable(work, self.forms, moments)
        stored = stored_leaves(work, self.forms, moments)
        return dataclasses.replace(work, params=replace_leaves(work.params, stored))

    def rules(self, work: Work) -> Rules[Quantize]:
        """Of the leaves that it only quantizes."""
        return [
            rule
            for path, form in self.forms.items()
            if isinstance(form, Quantize)
            for rule in only(path, form)
        ]

    def to_json(self) -> dict[str, Any]:
        """What it does, for a report: `kind`, `widths`, the units left, and `forms`."""
        kept = {} if self.plan is None else self.plan.kept
        return {
            "kind": "mix",
            "widths": {name: len(units) for name, units in kept.items()},
            "forms": {path: name_of(form) for path, form in self.forms.items()},
        }


def narrowed(work: Work, plan: Plan | None) -> Work:
    """The model without the units that a plan does not keep."""
    if plan is None:
        return work
    return dataclasses.replace(
        work,
        fn=shrunk(work.fn, plan),
        params=shrink(work.params, plan),
        plan=plan if work.plan is None else work.plan.then(plan),
    )


def observed(work: Work, forms: Mapping[str, Any]) -> Mapping[str, jax.Array] | None:
    """Second moments for those leaves whose forms learn from them.

    Args:
        work: the model, with dense leaves.
        forms: a form for each leaf, or a list of them.
    """
    wanted = {
        path
        for path, form in forms.items()
        for each in (form if isinstance(form, list) else [form])
        if learns_here(path, each, work.sites)
    }
    if not wanted:
        return None

    def own(site: Site) -> bool:
        return site.path in wanted

    return work.moments([(own, True)])


def trainable(
    work: Work,
    forms: Mapping[str, Candidate],
    moments: Mapping[str, jax.Array] | None,
) -> Work:
    """With zeros and factors, in floats that a training can change; bits come after it.

    Args:
        work: the model, with dense leaves.
        forms: a form for each leaf.
        moments: as of `observed`.
    """
    floats: dict[str, Candidate] = {}
    rules: list[tuple[Any, Quantize | None]] = []
    sparse: list[tuple[Any, Any]] = []
    factors: dict[str, Weights] = {}
    for path, form in forms.items():
        if isinstance(form, tuple):
            floats[path], factors[path] = form
        elif isinstance(form, OneShot):
            floats[path] = dataclasses.replace(form, weights=None)
            sparse += only(path, form.pattern)
            if form.weights is not None:
                rules += only(path, Quantize(weights=form.weights))
        elif isinstance(form, Quantize):
            rules += only(path, for_leaf(path, form, work.sites))
        else:
            floats[path] = form
    made = {
        path: leaf.dense() if isinstance(floats[path], OneShot) else leaf
        for path, leaf in stored_leaves(work, floats, moments).items()
    }
    work = dataclasses.replace(
        work,
        params=replace_leaves(work.params, made),
        sparse=(*work.sparse, *sparse),
        pruned=work.pruned
        | {p for p, form in floats.items() if isinstance(form, OneShot)},
        pending=work.pending._replace(factors={**work.pending.factors, **factors}),
    )
    return quantized(work, rules) if rules else work


def stored_leaves(
    work: Work,
    forms: Mapping[str, Candidate],
    moments: Mapping[str, jax.Array] | None,
) -> dict[str, Any]:
    """The leaves in their forms, by name."""
    named = dict(named_leaves(work.params))
    sites = work.sites
    return {
        path: made(
            path,
            jnp.asarray(named[path]),
            for_leaf(path, form, sites),
            sites=sites,
            moments=moments,
        )
        for path, form in forms.items()
        if form is not None
    }

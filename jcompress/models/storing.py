"""What a recipe stores small, at once or when its last training is done."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jcompress.calibration import Static, choose_ranges
from jcompress.low_rank.factorizing import quantize_factors
from jcompress.models.work import NOTHING, Work
from jcompress.pruning import to_sparse
from jcompress.quantization import Quantize, quantize
from jcompress.quantization.convert import check as check_quantization
from jcompress.quantization.convert import needs_moments
from jcompress.rounding import Nearest
from jcompress.rules import Rules
from jcompress.sensitivity.candidates import only
from jcompress.tensors import is_compressed


def quantized(work: Work, rules: Rules[Quantize]) -> Work:
    """With leaves quantized by rules; those that are compressed already stay.

    If a later step trains, they are rounded in it, and quantized after it.
    """
    rules = [*((path, None) for path in sorted(work.quantized)), *rules]
    if work.trains:
        return _quantized_later(work, rules)
    learns = any(spec is not None and needs_moments(spec) for _, spec in rules)
    moments = work.moments(rules) if learns else None
    small = quantize(
        work.params,
        rules,
        sites=work.sites,
        moments=moments,
        ranges=_ranges(work, rules),
    )
    return dataclasses.replace(work, params=small)


def _quantized_later(work: Work, rules: Rules[Quantize]) -> Work:
    """Check the rules, and choose ranges: a training rounds to the nearest by them."""
    rules = [
        (predicate, None if spec is None else _to_nearest(spec))
        for predicate, spec in rules
    ]
    found = check_quantization(work.sites, rules, transform="compress")
    before, ranges = work.pending, _ranges(work, rules)
    pending = before._replace(
        specs={**before.specs, **found.leaves},
        ranges={**(before.ranges or {}), **(ranges or {})} or None,
    )
    return dataclasses.replace(work, pending=pending)


def _to_nearest(spec: Quantize) -> Quantize:
    return dataclasses.replace(spec, rounding=Nearest())


def stored(work: Work) -> Work:
    """With those leaves quantized that were rounded while it was trained."""
    pending, small = work.pending, work.params
    if pending.specs:
        small = quantize(small, pending.rules, sites=work.sites, ranges=pending.ranges)
    if pending.factors:
        rules = [
            rule for path, how in pending.factors.items() for rule in only(path, how)
        ]
        small = quantize_factors(small, rules, sites=work.sites)
    return dataclasses.replace(work, params=small, pending=NOTHING)


def _ranges(work: Work, rules: Rules[Quantize]) -> Mapping[str, Any] | None:
    """The ranges that rules want chosen, from the data, or else from the example."""
    data = [spec.activation for _, spec in rules if spec is not None]
    if not any(each is not None and isinstance(each.range, Static) for each in data):
        return None
    dense = jax.tree.map(
        lambda leaf: leaf.dense() if is_compressed(leaf) else leaf,
        work.params,
        is_leaf=is_compressed,
    )
    return choose_ranges(work.fn, rules, dense, work.data or [work.args])


def finished(work: Work) -> Work:
    """With zeros that are stored away."""
    if not work.sparse:
        return work
    small = to_sparse(work.params, work.sparse, sites=work.sites)
    return dataclasses.replace(work, params=small, sparse=())

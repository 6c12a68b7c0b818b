"""Prune a little, train, and again; lottery tickets."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.leaves import named_leaves, path_name
from jcompress.pruning.masks import apply_masks, make_masks
from jcompress.pruning.patterns import NM
from jcompress.pruning.scores import score_by_magnitude
from jcompress.pruning.spec import Prune
from jcompress.rules import Rules
from jcompress.sites import Sites

Recover = Callable[[Any, Any, int], Any]
"""`recover(masks, params, round) -> params`: train what the masks leave, such as with
`prune(optimizer, rules, sites=sites, masks=masks)`."""


def prune_in_rounds(
    params: Any,
    rules: Rules[Prune],
    *,
    sites: Sites,
    rounds: int,
    recover: Recover | None = None,
    score: Callable[[Any], Any] = score_by_magnitude,
    rewind: Any = None,
    masks: Any = None,
    first: int = 0,
) -> tuple[Any, Any]:
    """Reach a sparsity in rounds, each removing the same fraction of what is left.

    After round r (from 0) of R the sparsity is 1 - (1 - s)^((r + 1) / R), s being that
    of a rule. What an earlier round removed stays removed.

    Args:
        params: trained weights.
        rules: pairs of a predicate and a `Prune`; sparsities are numbers.
        sites: the sites of the function that these parameters belong to.
        rounds: how many.
        recover: `recover(masks, params, round)` trains and returns the tree; what it
            returns is masked again. None trains nothing, for scores that change with
            what is gone: SynFlow's algorithm is `prune_in_rounds(params, rules,
            rounds=100, score=lambda p: score_by_synflow(fn, p, x), ...)`.
        score: `score(params)` scores the weights of a round, the trained ones.
        rewind: weights of an early step of the training; each round then begins with
            them, masked ("lottery tickets"), and not with what the last one trained.
        masks: those of the rounds before `first`, to go on after an interruption.
        first: the round to begin with.

    Returns:
        The recovered tree with exact zeros, and the masks.

    Raises:
        ValueError: fewer than one round, a `first` that is no round, or `first` without
            the masks so far.
        MismatchError: as `make_masks`.

    References:
        Frankle & Carbin 2019, "The Lottery Ticket Hypothesis"; Frankle et al. 2020,
        "Linear Mode Connectivity and the Lottery Ticket Hypothesis", section 4
        (rewinding to an early step); Tanaka et al. 2020, "Pruning neural networks
        without any data by iteratively conserving synaptic flow", algorithm 1.
    """
    if rounds < 1:
        raise ValueError(f"prune_in_rounds: at least one round, not {rounds!r}")
    if not 0 <= first < rounds or (first > 0) != (masks is not None):
        raise ValueError(
            f"prune_in_rounds: first is a round from 0 to {rounds - 1}, and masks are "
            f"those of the rounds before it; not {first!r} and "
            f"{'no masks' if masks is None else 'masks'}"
        )
    staged = [(predicate, spec and _staged(spec, rounds)) for predicate, spec in rules]
    for number in range(first, rounds):
        scores = score(params)
        if masks is not None:
            scores = _removed_last(scores, masks)
        # The last round takes the rules as they are, for exact counts.
        now = rules if number == rounds - 1 else staged
        masks = make_masks(scores, now, sites=sites, step=number)
        params = apply_masks(params if rewind is None else rewind, masks)
        if recover is not None:
            params = apply_masks(recover(masks, params, number), masks)
    return params, masks


def _staged(spec: Prune, rounds: int) -> Prune:
    final = spec.sparsity
    if final is None and isinstance(spec.pattern, NM):
        final = spec.pattern.sparsity
    if final is None or callable(final):
        amount = final or spec.threshold
        raise ValueError(
            f"prune_in_rounds: each rule has a number as its sparsity, not {amount!r}; "
            "the rounds rise to it"
        )
    left = 1 - final

    def sparsity(step: Any) -> jax.Array:
        return jnp.asarray(1 - left ** ((int(step) + 1) / rounds), jnp.float32)

    return dataclasses.replace(spec, sparsity=sparsity)


def _removed_last(scores: Any, masks: Any) -> Any:
    """Scores that rank what is removed already below everything else."""
    named = dict(named_leaves(masks))

    def lowest(path: Any, score: Any) -> Any:
        from_masks = named.get(path)
        if score is None or from_masks is None:
            return score
        return jnp.where(from_masks, score, jnp.float32(-jnp.inf))

    return jax.tree_util.tree_map_with_path(
        lambda path, score: lowest(path_name(path), score), scores
    )

"""The summary's numbers, reasons and label."""

import jax.numpy as jnp
import pytest
from mask_oracle import LEAVES, sites_of

from jcompress.errors import MismatchError
from jcompress.pruning import (
    NM,
    Prune,
    make_masks,
    score_by_magnitude,
    summarize,
)

SITES = sites_of(head=LEAVES["odd"], body=LEAVES["dense"], tail=LEAVES["transposed"])
RULES = [("body", Prune(pattern=NM(1, 4))), ("head", None)]


def tree():
    return {
        "head": jnp.ones((7, 5)),
        "body": jnp.ones((8, 6)).at[0].set(0),
        "tail": jnp.ones((6, 8)),
    }


def test_densities_and_reasons():
    masks = make_masks(score_by_magnitude(tree()), RULES, sites=SITES)
    summary = summarize(tree(), masks, RULES, sites=SITES)
    (body,) = summary.leaves
    assert (body.path, body.before, body.after, body.size) == ("body", 42, 12, 48)
    assert summary.sparsity == 0.75
    assert dict(summary.skipped) == {
        "head": "excluded by rule 1 ('head')",
        "tail": "no rule matches it",
    }
    text = str(summary)
    assert "NM(1, 4)" in text
    assert "0.8750" in text
    assert "0.2500" in text
    assert "simulated" in text


def test_masks_of_other_rules_are_refused():
    masks = make_masks(score_by_magnitude(tree()), RULES, sites=SITES)
    with pytest.raises(MismatchError, match="'head' has a rule but no mask"):
        summarize(tree(), masks, [(..., Prune(sparsity=0.5))], sites=SITES)
    with pytest.raises(MismatchError, match="has a mask but no rule"):
        summarize(tree(), masks, [("tail", Prune(sparsity=0.5))], sites=SITES)

"""The summary's numbers, reasons and label."""

import jax.numpy as jnp
import pytest
from mask_oracle import LEAVES, sites_of

from jcompress.errors import MismatchError
from jcompress.pruning import (
    NM,
    Prune,
    Unstructured,
    apply_masks,
    make_masks,
    summarize,
)
from jcompress.pruning.scores import score_by_magnitude

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
    (body,) = summary.changed
    assert (body.name, body.zeros_before, body.zeros_after, body.size) == (
        "body",
        6 / 48,
        36 / 48,
        48,
    )
    assert summary.sparsity == 0.75
    assert {row.name: row.reason for row in summary.skipped} == {
        "head": "excluded by rule 1 ('head')",
        "tail": "no rule matches it",
    }
    text = str(summary)
    assert "12.5-75%" in text
    assert "(simulated); 75.0% zeros" in text


def test_notes_on_weights_that_are_there_still_and_on_single_weights():
    masks = make_masks(score_by_magnitude(tree()), RULES, sites=SITES)
    (note,) = summarize(tree(), masks, RULES, sites=SITES).notes
    assert "30 of the 36 weights that the masks remove are not zero in params" in note
    pruned = apply_masks(tree(), masks)
    summary = summarize(pruned, masks, RULES, sites=SITES)
    assert summary.notes == ()
    assert summary["body"].zeros_before == summary.sparsity == 0.75
    rules = [(..., Prune(pattern=Unstructured(), sparsity=0.5))]
    masks = make_masks(score_by_magnitude(tree()), rules, sites=SITES)
    (note,) = summarize(apply_masks(tree(), masks), masks, rules, sites=SITES).notes
    assert note.startswith("rule 0: the zeros of single weights are stored")


def test_masks_of_other_rules_are_refused():
    masks = make_masks(score_by_magnitude(tree()), RULES, sites=SITES)
    with pytest.raises(MismatchError, match="'head' has a rule but no mask"):
        summarize(tree(), masks, [(..., Prune(sparsity=0.5))], sites=SITES)
    with pytest.raises(MismatchError, match="has a mask but no rule"):
        summarize(tree(), masks, [("tail", Prune(sparsity=0.5))], sites=SITES)

"""Kernels of convolutions in groups: their inputs are seen, and have their say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.budget.mixing import observed
from jcompress.formats import Int
from jcompress.low_rank import Svd
from jcompress.models import Work
from jcompress.pruning import Unstructured
from jcompress.pruning.one_shot import OneShot, SparseGpt
from jcompress.quantization import PerTensor, Quantize, Weights, quantize
from jcompress.rounding import Gptq, Nearest
from jcompress.sensitivity import LayerError, measure_sensitivity
from jcompress.sensitivity.candidates import for_leaf, has_moments, learns_here
from jcompress.sensitivity.counting import multiplied
from jcompress.sensitivity.making import made
from jcompress.sites import find_sites
from jcompress.statistics import SecondMoments, observe

GPTQ = Quantize(weights=Weights(format=Int(3)), rounding=Gptq())
SHARED = Quantize(
    weights=Weights(format=Int(3), granularity=PerTensor()), rounding=Gptq()
)
SPARSE = OneShot(method=SparseGpt(), pattern=Unstructured(), sparsity=0.5)
SPLIT = Svd(parameters=0.5)


def conv(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def model(p: Any, x: jax.Array) -> jax.Array:
    return conv(x, p["k"], 3)


P = {"k": jax.random.normal(jax.random.key(0), (3, 3, 4, 12))}
X = jnp.cumsum(jax.random.normal(jax.random.key(1), (2, 8, 8, 12)), axis=2)
SITES = find_sites(model, P, X)


def moments() -> Any:
    return observe(model, [("k", True)], SecondMoments())(P, X)[1]


def test_what_learns_does_so_on_groups() -> None:
    assert has_moments("k", SITES)
    assert for_leaf("k", GPTQ, SITES) == GPTQ
    assert for_leaf("k", SPARSE, SITES) == SPARSE
    known = moments()
    error = LayerError(known)
    table = measure_sensitivity(P, [GPTQ, SPARSE], error, sites=SITES, moments=known)
    plain = Quantize(weights=GPTQ.weights)
    nearest = measure_sensitivity(P, [plain], error, sites=SITES)
    assert table.errors["k"][0] < 0.8 * nearest.errors["k"][0]
    wanted = quantize(P, [("k", GPTQ)], sites=SITES, moments=known)["k"].dense()
    got = made("k", P["k"], GPTQ, sites=SITES, moments=known).dense()
    np.testing.assert_array_equal(got, wanted)


def test_a_scale_or_a_factor_that_groups_share_is_made_without_moments() -> None:
    assert for_leaf("k", SHARED, SITES).rounding == Nearest()
    assert not learns_here("k", SHARED, SITES)
    assert not learns_here("k", SPLIT, SITES)
    known = moments()
    for form in (SHARED, SPLIT):
        blind = made("k", P["k"], form, sites=SITES, moments=None).dense()
        seen = made("k", P["k"], form, sites=SITES, moments=known).dense()
        np.testing.assert_array_equal(seen, blind)


@pytest.mark.parametrize("form", [SPARSE, SPLIT])
def test_they_are_multiplied_dense(form: Any) -> None:
    assert multiplied("k", form, SITES) == 1.0


def test_a_budget_collects_the_moments_that_have_a_say() -> None:
    work = Work(fn=model, params=P, args=(X,), data=[(X,)])
    found = observed(work, {"k": [SHARED, GPTQ, SPLIT]})
    assert found is not None
    assert found["k"].shape == (3, 36, 36)
    assert observed(work, {"k": [SHARED, SPLIT]}) is None


def test_kernels_with_several_numbers_of_groups_are_not_seen() -> None:
    def twice(p: Any, x: jax.Array) -> Any:
        return conv(x[..., :4], p["k"], 1), conv(x, p["k"], 3)

    sites = find_sites(twice, P, X)
    assert not has_moments("k", sites)
    assert for_leaf("k", GPTQ, sites).rounding == Nearest()
    made("k", P["k"], GPTQ, sites=sites, moments=None)

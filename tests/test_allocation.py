"""`allocate` against all combinations, and what it refuses."""

import doctest
import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jcompress import allocation
from jcompress.allocation import Options, allocate
from jcompress.errors import MismatchError

pytestmark = pytest.mark.once

numbers = st.integers(0, 20).map(float)
leaf = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4).map(
    lambda pairs: Options(costs=[c for c, _ in pairs], errors=[e for _, e in pairs])
)
leaves = st.lists(leaf, min_size=1, max_size=4).map(
    lambda each: {str(n): options for n, options in enumerate(each)}
)


def best(options: Mapping[str, Options], budget: float) -> float | None:
    """The least error of all combinations; None if none is within the budget."""
    fits = [
        sum(error for _, error in choice)
        for choice in itertools.product(
            *(zip(o.costs, o.errors, strict=True) for o in options.values())
        )
        if sum(cost for cost, _ in choice) <= budget
    ]
    return min(fits, default=None)


@settings(max_examples=300)
@given(leaves, st.integers(0, 60))
def test_against_all_combinations(options: Mapping[str, Options], budget: int) -> None:
    least = best(options, budget)
    if least is None:
        with pytest.raises(MismatchError, match="more than the budget"):
            allocate(options, budget)
        return
    found, exact = allocate(options, budget), allocate(options, budget, exact=True)
    for each in (found, exact):
        pairs = [
            (options[k].costs[n], options[k].errors[n]) for k, n in each.chosen.items()
        ]
        assert each.cost == sum(cost for cost, _ in pairs) <= budget
        assert each.error == sum(error for _, error in pairs)
    assert list(found.chosen) == list(options)
    assert exact.error == exact.least_error == least
    assert found.least_error - 1e-9 <= least <= found.error
    steps = [max(o.errors) - min(o.errors) for o in options.values()]
    assert found.error <= least + max(steps)


@settings(max_examples=100)
@given(
    st.lists(st.lists(numbers, min_size=1, max_size=5), min_size=1, max_size=3),
    st.integers(3, 20),
)
def test_convex_and_of_one_price_is_best(gains: list[list[float]], budget: int) -> None:
    options = {}
    for name, each in enumerate(gains):
        steps = np.sort(each)[::-1]
        errors = steps.sum() - np.concatenate([[0.0], np.cumsum(steps)])
        options[str(name)] = Options(costs=1.0 + np.arange(len(errors)), errors=errors)
    found = allocate(options, budget)
    np.testing.assert_allclose(found.error, best(options, budget), atol=1e-9)


def test_thousands_of_options() -> None:
    ranks = np.arange(1.0, 2001)
    options = {
        str(n): Options(costs=ranks * (n + 1), errors=1 / ranks**2) for n in range(40)
    }
    found = allocate(options, 200_000.0)
    assert 199_000 < found.cost <= 200_000
    assert found.error - found.least_error < 1e-5


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"shapes \[2\] and \[1\]"):
        Options(costs=[1, 2], errors=[1])
    with pytest.raises(ValueError, match="a number for each option"):
        Options(costs=[], errors=[])
    with pytest.raises(ValueError, match="finite"):
        Options(costs=[1.0], errors=[np.nan])
    with pytest.raises(MismatchError, match="no leaves"):
        allocate({}, 1.0)
    one = {"w": Options(costs=[3, 2], errors=[0, 1])}
    with pytest.raises(MismatchError, match=r"cost 2 together, .* budget of 1"):
        allocate(one, 1)


def test_the_example_runs() -> None:
    failed, attempted = doctest.testmod(allocation)
    assert attempted
    assert not failed

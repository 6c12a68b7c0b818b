"""N of every M along both sides: no other mask of a tile keeps more."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.pruning import Prune, TransposableNM, apply_masks, make_masks, to_sparse
from jcompress.pruning.patterns._best_tiles import best_masks
from jcompress.pruning.scores import score_by_magnitude
from jcompress.sites import find_sites

KINDS = ("normal", "ties", "signs", "large and small")


def tiles_of(kind, m, count, seed=0):
    """float32 [m, m, count]."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(m, m, count)).astype(np.float32)
    match kind:
        case "ties":
            return rng.integers(0, 3, (m, m, count)).astype(np.float32)
        case "signs":
            return normal
        case "large and small":
            size = np.float32(10.0) ** rng.integers(-36, 36, count)
            return (np.abs(normal) ** 3 * size).astype(np.float32)
    return np.abs(normal)


def brute_force(tile, n):
    """The largest sum of all masks, each of them tried."""
    m = len(tile)
    choices = list(itertools.combinations(range(m), n))
    sums = [[tile[row, list(choice)].sum() for choice in choices] for row in range(m)]
    counts = np.zeros((len(choices), m), int)
    for number, choice in enumerate(choices):
        counts[number, list(choice)] = 1
    best = -np.inf
    for chosen in itertools.product(range(len(choices)), repeat=m):
        if (counts[list(chosen)].sum(0) == n).all():
            best = max(best, sum(sums[r][c] for r, c in enumerate(chosen)))
    return best


def by_counts(tile, n):
    """The largest sum, row after row, for every count of what the columns have."""
    m = len(tile)
    best = np.full((n + 1,) * m, -np.inf)
    best[(0,) * m] = 0
    for row in tile:
        after = np.full_like(best, -np.inf)
        for choice in itertools.combinations(range(m), n):
            to = tuple(slice(1 if k in choice else 0, None) for k in range(m))
            come = tuple(slice(0, n if k in choice else None) for k in range(m))
            after[to] = np.maximum(after[to], best[come] + row[list(choice)].sum())
        best = after
    return best[(n,) * m]


def assert_counts(keep, n):
    np.testing.assert_array_equal(keep.sum(0), n)
    np.testing.assert_array_equal(keep.sum(1), n)


def check(tiles, n, best_of):
    keep = best_masks(tiles, n)
    assert keep.dtype == np.bool_
    assert_counts(keep, n)
    np.testing.assert_array_equal(best_masks(jnp.asarray(tiles), n), keep)
    for number in range(tiles.shape[-1]):
        tile = tiles[..., number].astype(np.float64)
        tile = tile / max(np.abs(tile).max(), 1e-300)
        kept = tile[keep[..., number]].sum()
        assert kept >= best_of(tile, n) - tile.size * 2.0**-20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 3), (1, 4), (2, 4), (3, 4)])
def test_small_tiles_keep_what_trying_all_masks_keeps(kind, n, m):
    check(tiles_of(kind, m, 12), n, brute_force)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(4, 8), (2, 8), (7, 8), (3, 6), (2, 5)])
def test_large_tiles_keep_the_most_that_any_mask_keeps(kind, n, m):
    check(tiles_of(kind, m, 3), n, by_counts)


def test_both_ways_to_search_agree():
    tile = tiles_of("signs", 4, 1)[..., 0].astype(np.float64)
    assert by_counts(tile, 2) == pytest.approx(brute_force(tile, 2))


def test_what_is_infinite_stays():
    tiles = tiles_of("normal", 8, 6)
    for number in range(6):
        tiles[number, (3 * number) % 8, number] = np.inf
        tiles[7, (5 * number) % 8, number] = np.nan
        tiles[6, number, number] = -np.inf
    keep = best_masks(tiles, 4)
    np.testing.assert_array_equal(best_masks(jnp.asarray(tiles), 4), keep)
    assert keep[np.isposinf(tiles) | np.isnan(tiles)].all()
    assert not keep[np.isneginf(tiles)].any()
    assert_counts(keep, 4)


@pytest.mark.parametrize("fill", [0.0, 1.0, np.inf, -np.inf])
def test_tiles_of_one_value_have_a_mask(fill):
    tiles = np.full((8, 8, 2), fill, np.float32)
    keep = best_masks(tiles, 4)
    np.testing.assert_array_equal(best_masks(jnp.asarray(tiles), 4), keep)
    assert_counts(keep, 4)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
def test_leaves_are_stored_as_those_of_n_of_m(n, m):
    weights = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    params = {"w": jnp.asarray(weights)}
    sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 16)))
    pattern = TransposableNM(n, m)
    rules = [(..., Prune(pattern=pattern))]
    masks = make_masks(score_by_magnitude(params), rules, sites=sites)
    mask = np.asarray(masks["w"])
    assert (mask.reshape(16 // m, m, 24).sum(1) == n).all()
    assert (mask.reshape(16, 24 // m, m).sum(2) == n).all()
    pruned = apply_masks(params, masks)
    sparse = to_sparse(pruned, [("w", pattern)], sites=sites)
    np.testing.assert_array_equal(sparse["w"].dense(), pruned["w"])
    again = jax.jit(lambda p: make_masks(p, rules, sites=sites))
    np.testing.assert_array_equal(again(score_by_magnitude(params))["w"], mask)

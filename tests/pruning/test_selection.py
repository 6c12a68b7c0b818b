"""The selection of compiled programs against a stable sort, for all sizes of rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mask_oracle import sites_of

from jcompress.allocation import Ranking
from jcompress.pruning import Prune, Unstructured, _selection, make_masks
from jcompress.pruning._selection import keep_highest_compiled
from jcompress.pruning.ranking import keep_highest
from jcompress.pruning.scores import score_by_magnitude

pytestmark = [pytest.mark.once, pytest.mark.bits]

AWKWARD = np.float32(
    [0.0, -0.0, 1e-40, -3e-40, 1.0, -1.0, np.inf, -np.inf, np.nan, 2e-38, 3e38, -3e38]
)


def by_sorting(rows, removed):
    """The lowest go, of equal ones the first; a NaN is infinite, 1e-40 is 0."""
    rows = np.where(np.isnan(rows), np.inf, rows)
    rows = np.where(np.abs(rows) < np.finfo(rows.dtype).tiny, 0, rows)
    keep = np.ones(rows.shape, bool)
    for row, verdicts in zip(rows, keep, strict=True):
        verdicts[np.argsort(row, kind="stable")[:removed]] = False
    return keep


def rows_of(kind, shape):
    rng = np.random.default_rng(shape[1])
    match kind:
        case "normal":
            return rng.normal(size=shape).astype(np.float32)
        case "magnitudes, most of them removed":
            rows = np.abs(rng.normal(size=shape)).astype(np.float32)
            return np.where(rng.random(shape) < 0.6, np.float32(-np.inf), rows)
        case "ties":
            return rng.integers(-2, 3, shape).astype(np.float32)
        case "awkward":
            return rng.choice(AWKWARD, shape)
    raise ValueError(kind)


@pytest.mark.parametrize(
    "shape",
    [(3, 17), (3, 2048), (700, 600), (2, 300_001), (1, 2**19 + 2**18 + 5)],
)
def test_every_size_of_rows_equals_a_stable_sort(shape):
    """By digits of 4, 8 and 16 bits; in blocks of rows and parts of a row."""
    for kind in ("normal", "magnitudes, most of them removed", "ties", "awkward"):
        rows = rows_of(kind, shape)
        for removed in (0, 1, int(0.7 * shape[1]), shape[1] - 1):
            wanted = by_sorting(rows, removed)
            # An array, so that one program serves.
            got = keep_highest_compiled(jnp.asarray(rows), jnp.asarray(removed))
            np.testing.assert_array_equal(got, wanted, err_msg=f"{kind} {removed}")
        got = keep_highest_compiled(jnp.asarray(rows), shape[1] - 1)
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(keep_highest(rows, shape[1] - 1), wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_scores(dtype):
    rows = jnp.asarray(rows_of("normal", (4, 3000)), dtype)
    wanted = by_sorting(np.asarray(rows.astype(jnp.float32)), 1000)
    np.testing.assert_array_equal(keep_highest_compiled(rows, 1000), wanted)


def test_wide_scores():
    with jax.enable_x64(True):
        rows = np.random.default_rng(0).normal(size=(2, 3000)) * 1e-50
        rows[:, ::7] = rows[:, :1]
        got = keep_highest_compiled(jnp.asarray(rows), jnp.asarray(1000))
        np.testing.assert_array_equal(got, by_sorting(rows, 1000))


def test_accelerators_compare_bit_by_bit(monkeypatch):
    """What they run, on this processor."""

    def ranked(rows, key, rank):
        return _selection._searched(rows, rank, key=key, digit=1, part=rows.shape[1])

    monkeypatch.setattr(_selection, "_ranked", ranked)
    select = jax.jit(_selection._by_digits)
    for kind in ("normal", "ties", "awkward"):
        rows = rows_of(kind, (5, 333))
        for removed in (0, 1, 200, 332):
            got = select(jnp.asarray(rows), jnp.asarray(removed))
            np.testing.assert_array_equal(got, by_sorting(rows, removed))


def test_under_vmap_and_with_a_traced_number():
    rows = rows_of("ties", (6, 50)).reshape(2, 3, 50)
    removed = np.array([10, 40])
    got = jax.vmap(keep_highest_compiled)(jnp.asarray(rows), jnp.asarray(removed))
    for each, part, number in zip(got, rows, removed, strict=True):
        np.testing.assert_array_equal(each, by_sorting(part, number))


def test_a_global_choice_copies_the_scores_once():
    """What the compiler says of a program over eight leaves."""
    leaves = {f"w{n}": ((512, 1024), (), (1,), (0,)) for n in range(8)}
    spec = Prune(pattern=Unstructured(), sparsity=0.9, ranking=Ranking.GLOBAL)
    make = functools.partial(make_masks, rules=[(..., spec)], sites=sites_of(**leaves))
    params = {
        name: jax.ShapeDtypeStruct(leaf[0], jnp.float32)
        for name, leaf in leaves.items()
    }
    program = jax.jit(lambda params: make(score_by_magnitude(params)))
    used = program.lower(params).compile().memory_analysis()
    scores = 8 * 512 * 1024 * 4
    # Beside them what is counted at a time, whatever the number of scores.
    assert used.temp_size_in_bytes < scores + 4 * 2**20
    assert used.output_size_in_bytes < 1.01 * scores / 4

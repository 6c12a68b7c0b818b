"""The benchmark of a shrunk sentence encoder, on a tiny random one without its data."""

import importlib
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.once

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
NAME = "half of all three"
WIDTH, HIDDEN = 16, 32


@pytest.fixture(scope="module")
def benchmark() -> Any:
    sys.path.append(str(BENCHMARKS))
    return importlib.import_module("minilm_shrunk")


@pytest.fixture(scope="module")
def rows(benchmark: Any) -> list[Any]:
    """The dense encoder, of two layers, and it with half of everything gone."""
    encoder = benchmark.minilm_bert.Encoder(
        vocabulary=20, positions=8, width=WIDTH, hidden=HIDDEN, heads=4, layers=2
    )
    random = np.random.default_rng(0)

    def some(count: int) -> Any:
        made = [random.integers(1, 20, (8, 8), np.int32) for _ in range(count)]
        lengths = np.arange(1, 9, dtype=np.int32)[:, None]
        mask = np.int32(np.arange(8, dtype=np.int32) < lengths)
        return benchmark.Part([(tokens, mask) for tokens in made], [])

    train, validation, test = some(6), some(2), some(2)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), *train.batches[0])
    tree = jax.tree.map(
        lambda leaf: random.normal(0.2, 0.4, leaf.shape).astype(np.float32), shapes
    )
    side = random.standard_normal(WIDTH).astype(np.float32)
    data = benchmark.Data(train, validation, test, lambda x: float(np.mean(x @ side)))
    how = benchmark.Recovery(epochs=6, rate=1e-2, scored=2)
    # The optimizer counts its steps in integers and multiplies floats with them.
    with jax.numpy_dtype_promotion("standard"):
        return list(
            benchmark.study(
                benchmark.bert(encoder, tree),
                data,
                how,
                cuts={NAME: benchmark.CUTS[NAME]},
                multiple=4,
            )
        )


def test_half_of_the_heads_widths_and_layers_is_left(rows: list[Any]) -> None:
    dense, small = rows
    params = small.model.tree["params"]
    left = [params[block.partition("/")[2]] for block in small.model.blocks]
    assert len(left) == 1
    assert left[0]["query"]["kernel"].shape == (WIDTH, WIDTH // 2)
    assert left[0]["wide"]["kernel"].shape == (WIDTH, HIDDEN // 2)
    (gone,) = {"layer0", "layer1"} - {small.model.blocks[0].partition("/")[2]}
    assert not jax.tree.leaves(params[gone])
    assert dense.multiplications == 4 * small.multiplications


def test_recovery_comes_nearer_to_the_dense_model(rows: list[Any]) -> None:
    dense, small = rows
    assert dense.cosine == [pytest.approx(1, abs=1e-5)]
    before, after = small.cosine
    assert 0 < 1 - after < (1 - before) / 4
    assert small.accuracy[0] != small.accuracy[1] != dense.accuracy[0]


def test_the_lookups_stay_as_they_are(rows: list[Any], benchmark: Any) -> None:
    dense, small = rows
    for name in benchmark.FROZEN:
        found, wanted = (row.model.tree["params"][name] for row in (small, dense))
        np.testing.assert_array_equal(found["embedding"], wanted["embedding"])


def test_a_line_tells_before_and_after(benchmark: Any, rows: list[Any]) -> None:
    cells = benchmark.line(rows[1]).strip("| ").split(" | ")
    before, after = rows[1].cosine
    assert cells[0] == NAME
    assert cells[4] == f"{before:.3f} to {after:.3f}"
    assert cells[5] == "{:.3f} to {:.3f}".format(*rows[1].accuracy)

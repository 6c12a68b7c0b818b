"""Specs that make no sense: ValueError when they are made, before any parameters."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest

from jcompress.allocation import Options, Ranking
from jcompress.formats import Int
from jcompress.low_rank import Cp, Lora, Spatial, Svd, Tucker
from jcompress.pruning import (
    NM,
    Block,
    Heads,
    Prune,
    Rows,
    TransposableNM,
    Unstructured,
)
from jcompress.pruning.thresholds import Relative, Threshold
from jcompress.quantization import Quantize
from jcompress.sharing import Cluster, Hash, TieBlocks, TieLayers
from jcompress.shrinking import Width
from jcompress.shrinking.search import Evolution, Greedy
from jcompress.tensors.specs import MovingAverage, PerGroup

BAD: list[Callable[[], Any]] = [
    functools.partial(Prune, pattern=Unstructured(), sparsity=2),
    functools.partial(Prune, pattern=NM(2, 4), sparsity=0.8),
    functools.partial(Prune, pattern=NM(2, 4), ranking=Ranking.GLOBAL),
    functools.partial(
        Prune, pattern=Unstructured(), sparsity=jnp.array([0.5], jnp.float32)
    ),
    functools.partial(
        Prune, pattern=Unstructured(), sparsity=0.5, threshold=Threshold(0.1)
    ),
    functools.partial(Prune, pattern=NM(2, 4), threshold=Threshold(0.1)),
    functools.partial(Threshold, -0.1),
    functools.partial(Threshold, 1.5, relative_to=Relative.MAXIMUM),
    functools.partial(NM, 4, 4),
    functools.partial(TransposableNM, 8, 16),
    functools.partial(Heads, 1),
    functools.partial(Rows, axis=-1),
    functools.partial(Block, (4, 0)),
    functools.partial(Hash, entries=0.5),
    functools.partial(Hash, entries=8, seed=-1),
    functools.partial(Cluster, entries=1),
    functools.partial(Cluster, rows=0),
    functools.partial(Cluster, iterations=0),
    functools.partial(TieBlocks, ("a",)),
    functools.partial(TieLayers, below="a", groups=(0, 2)),
    functools.partial(TieLayers, below="a", groups=(0, 1)),
    functools.partial(Lora, rank=0),
    functools.partial(Lora, alpha=0.0),
    functools.partial(Svd, rank=0),
    functools.partial(Svd, energy=2.0),
    functools.partial(Spatial, rank=0),
    functools.partial(Tucker, ranks=(0, 1)),
    functools.partial(Cp, rank=0),
    functools.partial(Int, 9),
    functools.partial(Int, 1),
    functools.partial(Quantize, weights=None, activation=None),
    functools.partial(PerGroup, 0),
    functools.partial(MovingAverage, decay=1.0),
    functools.partial(Width, minimum=0),
    functools.partial(Greedy, step=1.0),
    functools.partial(Evolution, population=0),
    functools.partial(Options, costs=[1.0], errors=[1.0, 2.0]),
]


@pytest.mark.parametrize("make", BAD, ids=str)
def test_a_bad_value_is_a_plain_value_error(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        make()
    assert type(caught.value) is ValueError

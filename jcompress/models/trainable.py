"""Which leaves of a model a training changes, and the function that it trains."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.leaves import named_leaves, path_name
from jcompress.models.work import Work
from jcompress.quantization import fake_quant
from jcompress.tensors import LowRank, is_compressed


class Parts(NamedTuple):
    """A tree in two, each with None where the other has a leaf.

    Attributes:
        trained: what a training changes.
        rest: running statistics, random keys, integers.
    """

    trained: Any
    rest: Any


def take_apart(work: Work) -> Parts:
    """The leaves that are trained, and the others.

    Those are the parameters of an NNX module, the entry "params" of the variables of a
    Linen or Keras model, and else every leaf of floats.

    Raises:
        MismatchError: one of them is stored without a copy in floats, or there is none.
    """
    assert work.lessons is not None
    wanted = _names(work.lessons.params)
    trained = {
        path
        for path, leaf in named_leaves(work.params)
        if path in wanted and _is_trained(path, leaf)
    }
    if not trained:
        raise MismatchError("train: the model has no leaf of floats to train")

    def part(inside: bool) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if (path_name(path) in trained) is inside else None,
            work.params,
            is_leaf=is_compressed,
        )

    return Parts(part(True), part(False))


def put_together(parts: Parts) -> Any:
    """The tree again."""
    return jax.tree.map(
        lambda trained, rest: rest if trained is None else trained,
        *parts,
        is_leaf=lambda leaf: leaf is None or is_compressed(leaf),
    )


def in_training(work: Work) -> Callable[..., Any]:
    """The function that is trained: rounded by what will be quantized, with factors."""
    fn = work.fn
    if work.pending.specs:
        fn = fake_quant(fn, work.pending.rules, ranges=work.pending.ranges)
    leaves = jax.tree.leaves(work.params, is_leaf=is_compressed)
    return compressed(fn) if any(map(is_compressed, leaves)) else fn


def _names(params: Any) -> set[str]:
    if isinstance(params, nnx.State):
        return {path for path, _ in named_leaves(nnx.filter_state(params, nnx.Param))}
    named = [path for path, _ in named_leaves(params)]
    if isinstance(params, Mapping) and "params" in params:
        return {path for path in named if path.startswith("params/")}
    return set(named)


def _is_trained(path: str, leaf: Any) -> bool:
    if not is_compressed(leaf):
        return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    floats = [jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(leaf)]
    if isinstance(leaf, LowRank) and all(floats):
        return True
    raise MismatchError(
        f"train: {path!r} is stored as {type(leaf).__name__} and has no copy in floats "
        "that could be trained; quantize it by a step of its own before the training "
        "(w8, w4, w8a8, or rules with Quantize), which keeps one, or train before it"
    )

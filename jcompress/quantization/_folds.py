"""Weights that are rounded with the factor that they will take in when served."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError


class Fold(Protocol):
    """The factor of a weight, as `jcompress.rescaling.find_folds` finds it."""

    @property
    def leaves(self) -> tuple[str, ...]:
        """The names of the leaves that decide it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight, with 1 for the axes along which the factor is one."""
        ...

    def __call__(self, leaves: Mapping[str, Any]) -> jax.Array:
        """The factor, float32 of `shape`, from leaves by name."""
        ...


Folds = Mapping[str, Fold]
"""For each weight that is folded into before it is quantized, by its name."""


def factors_of(
    transform: str, folds: Folds, leaves: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The factors of the weights in `wanted`, without gradients.

    Raises:
        MismatchError: a fold is of another tree, or none is of a wanted weight.
    """
    used = [path for path in wanted if path in folds]
    if not used:
        raise MismatchError(
            f"{transform}: folds has {', '.join(folds) or 'nothing'}, of which the "
            f"rules quantize nothing; they quantize {', '.join(wanted)}"
        )
    for path in used:
        absent = [name for name in folds[path].leaves if name not in leaves]
        if absent:
            raise MismatchError(
                f"{transform}: the fold of {path} depends on {', '.join(absent)}, "
                "which the tree does not have; call find_folds with a function of the "
                "tree that is trained, statistics included"
            )
        shape, own = jnp.shape(leaves[path]), folds[path].shape
        fits = len(shape) == len(own) and all(
            a in (1, b) for a, b in zip(own, shape, strict=True)
        )
        if not fits:
            raise MismatchError(
                f"{transform}: the fold of {path} has shape {list(own)}, and the "
                f"leaf {list(shape)}; call find_folds with this tree"
            )
    return {path: jax.lax.stop_gradient(folds[path](leaves)) for path in used}


def into(leaf: jax.Array, factor: jax.Array | None) -> jax.Array:
    """A weight times its factor, in its own dtype."""
    if factor is None:
        return leaf
    return (leaf.astype(jnp.float32) * factor).astype(leaf.dtype)


def out_of(folded: jax.Array, factor: jax.Array | None, leaf: jax.Array) -> jax.Array:
    """What is `folded` by `into`, divided again; `leaf` itself where the factor is 0.

    There the outputs are 0 whatever the weights are, and with weights of 0 a scale that
    starts at 0 would get no gradient.
    """
    if factor is None:
        return folded
    some = jnp.abs(factor) > np.finfo(np.float32).tiny
    divided = folded.astype(jnp.float32) / jnp.where(some, factor, 1)
    return jnp.where(some, divided.astype(leaf.dtype), leaf)

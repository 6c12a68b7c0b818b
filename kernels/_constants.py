"""Which arrays are constants of the program that is being traced."""

import itertools
import weakref
from typing import Any

import jax
import jax.numpy as jnp

_numbers = itertools.count()
_known: dict[int, tuple[weakref.ref[Any], int]] = {}


def constant_number(array: Any) -> int | None:
    """A number of an array that is a constant of the program being traced.

    What is made of such an array can be kept from call to call: the weights of a model
    in `jax.jit(functools.partial(model, tree))`. Arguments of the program are none, and
    neither is anything where no program is traced, whose parts are then compiled for
    any array. No two arrays have the same number, so that a program is traced for each.

    Returns:
        The number; None if the array is no constant.
    """
    if not isinstance(array, jax.Array) or isinstance(array, jax.core.Tracer):
        return None
    # Where a program is traced even what is known now is only known when it runs.
    if not isinstance(jnp.zeros(()), jax.core.Tracer):
        return None
    key = id(array)
    found = _known.get(key)
    if found is None or found[0]() is not array:
        gone = weakref.ref(array, lambda _: _known.pop(key, None))
        _known[key] = found = (gone, next(_numbers))
    return found[1]

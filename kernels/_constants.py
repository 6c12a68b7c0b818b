"""Which arrays are constants of the program that is being traced."""

import itertools
import weakref
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

_numbers = itertools.count()
_known: dict[int, tuple[weakref.ref[Any], int]] = {}


def constant_numbers(*arrays: Any) -> tuple[int, ...] | None:
    """A number for each array, if all are constants of the program being traced.

    What is made of such arrays can be kept from call to call: of the weights of a model
    in `jax.jit(functools.partial(model, tree))`. Arguments of the program are none, and
    neither is anything where no program is traced, whose parts are then compiled for
    any array. No two arrays have the same number, so that a program is traced for each.

    Returns:
        The numbers; None if one of the arrays is no constant.
    """
    found = [isinstance(a, jax.Array) and not isinstance(a, Tracer) for a in arrays]
    # Where a program is traced even what is known now is only known when it runs.
    if not all(found) or not isinstance(jnp.zeros(()), Tracer):
        return None
    return tuple(map(_number, arrays))


def _number(array: jax.Array) -> int:
    key = id(array)
    found = _known.get(key)
    if found is None or found[0]() is not array:
        gone = weakref.ref(array, lambda _: _known.pop(key, None))
        _known[key] = found = (gone, next(_numbers))
    return found[1]

"""`fused`: run what stands between the products of a function by fewer operations."""

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import ParamSpec, TypeVar

from jcompress.fusion import Found, Fusion, find_fusions
from jcompress.tensors import is_compressed
from jcompress.tracing.interpreter import Program
from jcompress.tracing.replacing import Replacement
from jcompress.tracing.trace import trace
from jcompress.tracing.values import Location

P = ParamSpec("P")
R = TypeVar("R")


def fused(fn: Callable[P, R], *, without: Collection[Fusion] = ()) -> Callable[P, R]:
    """Make a function run its attentions and normalisations by one operation each.

    On a CPU these are compiled kernels, which read what they need once and keep the
    rest in the cache; on other platforms the function stays as it is. They are found in
    the traced function, however it is written: attention as `jax.nn.
    dot_product_attention` or by hand, with a mask, a bias and grouped queries; layer
    and RMS normalisation with the sum of residuals before it. Whatever is not exactly
    that is left alone. Results agree within 2e-6 of their largest, in float32;
    gradients are those of the function.

    `compressed` does the same by itself. This is for a function of plain arrays: what
    compression gains is told against the fastest dense model that there is.

    Args:
        fn: the function; the tree of parameters is its first argument, by position.
        without: what to leave as it is.

    Returns:
        A function with the arguments and results of `fn`. It raises ValueError if
        there is nothing to change, or if the tree has compressed leaves.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jcompress.execution import fused
        >>> def attend(params, x):
        ...     return jax.nn.dot_product_attention(x * params["scale"], x, x)
        >>> x = jnp.ones((1, 3, 2, 4))
        >>> fused(attend)({"scale": jnp.ones(4)}, x).shape
        (1, 3, 2, 4)
    """

    @functools.wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not args:
            raise TypeError(
                "fused: the tree of parameters is the first argument and is given by "
                f"position; got only the keywords {sorted(kwargs)}"
            )
        traced = trace(fn, args[0], args[1:], kwargs, write_out_calls=True)
        if any(map(is_compressed, traced.leaves)):
            raise ValueError(
                "fused: the tree has compressed leaves; use jcompress.execution."
                "compressed, which does this, too"
            )
        found = find_fusions(traced.body, set(Fusion) - set(without))
        if not found:
            raise ValueError(
                "fused: the function has no attention and no normalisation in float32 "
                "that could run as one operation"
            )
        program = Program(traced=traced, handlers={}, replacements=by_program(found))
        outs, _ = program(traced.leaves, traced.data)
        result: R = traced.rebuild(outs)
        return result

    return run


def by_program(found: Iterable[Found]) -> Mapping[Location, Sequence[Replacement]]:
    """What takes the place of equations, by the program that these stand in."""
    placed: dict[Location, list[Replacement]] = {}
    for one in found:
        placed.setdefault(one.at, []).append(one.replacement)
    return placed

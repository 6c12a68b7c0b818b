"""`attention`: softmax attention of queries, keys and values in any layout."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._dispatch import Form, Implementation, check_named, dispatch
from jcompress.kernels._partition import partly_manual, vary, varying
from jcompress.kernels.attention import cpu
from jcompress.kernels.attention.axes import NAME, OPERANDS, Axes, read, symbolic
from jcompress.kernels.attention.reference import formula, reference
from jcompress.kernels.attention.sharding import explicit_spec, partitioned
from jcompress.kernels.attention.xla import xla

FORMS = {
    Implementation.REFERENCE: Form(reference, stacked=True),
    Implementation.XLA: Form(xla, stacked=True),
    Implementation.CPU: Form(cpu.cpu, cpu.refuses, cpu.prefers, stacked=True),
}


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    axes: str,
    scale: float = 1.0,
    fill: float = -math.inf,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Sum up values, weighted by the softmax of what queries and keys have in common.

    `scores = where(mask, scale sum_d q k + bias, fill)`, `weights = softmax(scores)`
    over the keys s, `out = sum_s weights v`, in float32. A row all of whose scores are
    -inf gives NaN, as `jax.nn.softmax`; one that a finite `fill` excludes from all keys
    the mean of the values. What is not finite in the value of an excluded key may or
    may not make a row NaN.

    Differentiable in q, k, v and bias, forward and in reverse. On a mesh the result
    and what it is made of may be cut along every axis of the result.

    Args:
        q: floats.
        k: of the dtype of `q`.
        v: of the dtype of `q`.
        bias: float32 or of the dtype of `q`; added to the scores.
        mask: bool; False excludes a key.
        axes: einsum notation of the operands that are given, in order, and the result:
            "bthd,bshd,bshe,bhts->bthe" for a bias or a mask (first the bias). One
            letter is the feature (in q and k only), one the key (in k and v, not in q
            or the result), one the feature of values (in v and the result only); at
            least one is of rows (in q and the result, not in k and v); the others of
            the result are of the batch. An operand that lacks one of these, or has it
            with size 1, is repeated.
        scale: of products of queries and keys.
        fill: the score of an excluded key.
        implementation: None for the fastest.

    Returns:
        What `axes` says, in the dtype of `q`.

    Raises:
        ValueError: axes, shapes or dtypes do not fit.
        TypeError: `implementation` is of another kind.
        NotImplementedError: there is no such implementation, or it cannot compute
            these shapes and dtypes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.kernels import attention
        >>> x = jnp.ones((1, 4, 2, 8))
        >>> causal = jnp.tril(jnp.ones((4, 4), bool))
        >>> attention(x, x, x, mask=causal, axes="bthd,bshd,bshe,ts->bthe").shape
        (1, 4, 2, 8)
    """
    arrays = (q, k, v, bias, mask)
    _check_dtypes(arrays)
    given = read(axes, arrays)
    static = {"axes": given, "scale": float(scale), "fill": float(fill)}
    check_named(NAME, FORMS, implementation, arrays, static)
    run = functools.partial(_compiled, implementation, *static.values())
    if jax.sharding.get_abstract_mesh().explicit_axes:
        spec = explicit_spec(given, arrays)
        run = jax.sharding.auto_axes(run, out_sharding=spec)
    # Inside a `shard_map` the gradient of an argument that is the same on devices where
    # another is not is summed over them.
    out: jax.Array = run(*(vary(a, varying(arrays)) for a in arrays))
    return out


def _check_dtypes(arrays: Sequence[Any]) -> None:
    q, k, v, bias, mask = arrays
    if not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(f"{NAME}: q is floats, not {q.dtype}")
    for name, array in zip(OPERANDS[1:3], (k, v), strict=True):
        if array.dtype != q.dtype:
            raise ValueError(f"{NAME}: q is {q.dtype}, and {name} is {array.dtype}")
    if bias is not None and bias.dtype not in (q.dtype, jnp.float32):
        raise ValueError(f"{NAME}: bias is float32 or {q.dtype}, not {bias.dtype}")
    if mask is not None and mask.dtype != jnp.bool_:
        raise ValueError(f"{NAME}: mask is bool, not {mask.dtype}")


def _attention(
    implementation: Any, axes: Axes, scale: float, fill: float, *arrays: Any
) -> jax.Array:
    static = {"axes": axes, "scale": scale, "fill": fill}
    return _mapped(implementation, static, axes, arrays)


_attention.__name__ = NAME
_differentiable = jax.custom_jvp(_attention, nondiff_argnums=(0, 1, 2, 3))


@_differentiable.defjvp
def _forward(
    implementation: Any,
    axes: Axes,
    scale: float,
    fill: float,
    arrays: Sequence[Any],
    tangents: Sequence[Any],
) -> tuple[jax.Array, jax.Array]:
    *floats, mask = arrays

    def run(q: Any, k: Any, v: Any, bias: Any) -> jax.Array:
        return formula(q, k, v, bias, mask, axes=axes, scale=scale, fill=fill)

    out, tangent = jax.jvp(run, tuple(floats), tuple(tangents[:-1]))
    return out, tangent


_compiled = jax.jit(_differentiable, static_argnums=(0, 1, 2, 3))


def _mapped(
    implementation: Any, static: dict[str, Any], axes: Axes, arrays: Sequence[Any]
) -> jax.Array:
    """The operation under `vmap` and on meshes."""
    there = [a is not None for a in arrays]

    def whole(parts: Sequence[Any]) -> tuple[Any, ...]:
        rest = iter(parts)
        return tuple(next(rest) if here else None for here in there)

    def run(*parts: Any) -> jax.Array:
        return _form(implementation, {**static, "axes": axes}, parts)

    @jax.custom_batching.custom_vmap
    def one(*present: jax.Array) -> jax.Array:
        if partly_manual():
            return run(*whole(present))
        return partitioned(run, axes, whole(present))

    @one.def_vmap
    def _(size: int, mapped: list[bool], *present: jax.Array) -> Any:
        over = [bool(here) for here in whole(mapped)]
        out = _mapped(implementation, static, axes.mapped(over), whole(present))
        return out, True

    out: jax.Array = one(*(a for a in arrays if a is not None))
    return out


def _form(implementation: Any, static: dict[str, Any], arrays: Any) -> jax.Array:
    sizes = [size for a in arrays if a is not None for size in a.shape]
    if any(not symbolic(size) and size == 0 for size in sizes):
        implementation = Implementation.REFERENCE
    if implementation is None and partly_manual():
        # XLA cuts what it compiles itself along the other axes of the mesh.
        implementation = Implementation.XLA
    out: jax.Array = dispatch(NAME, FORMS, implementation, arrays, static)
    return out

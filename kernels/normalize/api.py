"""`normalize`: layer and RMS normalisation of rows, with a sum before it."""

import functools
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from jcompress.kernels._dispatch import Implementation
from jcompress.kernels._partition import partly_manual, vary, varying
from jcompress.kernels._rows import said
from jcompress.kernels.normalize import cpu
from jcompress.kernels.normalize.reference import reference

_NAME = "normalize"
_HAS = (Implementation.REFERENCE, Implementation.XLA, Implementation.CPU)


@overload
def normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    residual: jax.Array | None = None,
    epsilon: float = 1e-6,
    centered: bool = True,
    keep_sum: Literal[False] = False,
    implementation: Implementation | None = None,
) -> jax.Array: ...


@overload
def normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    residual: jax.Array | None = None,
    epsilon: float = 1e-6,
    centered: bool = True,
    keep_sum: Literal[True],
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]: ...


def normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    residual: jax.Array | None = None,
    epsilon: float = 1e-6,
    centered: bool = True,
    keep_sum: bool = False,
    implementation: Implementation | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Normalize each row, after adding another: layer or RMS normalisation.

    `s = x + residual`; `y = (s - mean(s)) / sqrt(var(s) + epsilon) * scale + bias` over
    the last axis, in float32 (Ba et al. 2016, arXiv 1607.06450, equation 4); without
    `centered`, `y = s / sqrt(mean(s^2) + epsilon) * scale + bias` (Zhang and Sennrich
    2019, arXiv 1910.07467, equation 4). Differentiable, forwards and backwards.

    Args:
        x: floats [..., C].
        scale: [C]; None for ones.
        bias: [C]; None for zeros.
        residual: of the shape and dtype of `x`; None for zeros.
        epsilon: added to the mean of squares.
        centered: whether the mean is subtracted.
        keep_sum: whether `s` is handed back, too, as the next layer's residual.
        implementation: None for the fastest.

    Returns:
        y, of the shape and dtype of `x`; with `keep_sum`, (y, s).

    Raises:
        ValueError: shapes or dtypes do not fit.
        TypeError: `implementation` is of another kind.
        NotImplementedError: there is no such implementation, or it cannot compute
            these shapes and dtypes.
    """
    _check(x, scale, bias, residual)
    why = cpu.refuses(x, residual, scale, bias)
    _check_implementation(implementation, why)
    options = (float(epsilon), centered, keep_sum)
    names = varying((x, residual, scale, bias))
    arrays = [vary(a, names) for a in (x, residual, scale, bias)]
    if implementation is None:
        native = not why and x.size != 0 and not partly_manual()
    else:
        native = implementation is Implementation.CPU
    outs = _compiled(native, implementation is None, options, *arrays)
    return (outs[0], outs[1]) if keep_sum else outs[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(
    native: bool, by_platform: bool, options: tuple[float, bool, bool], *arrays: Any
) -> tuple[jax.Array, ...]:
    epsilon, centered, keep_sum = options
    given: dict[str, Any] = {
        "epsilon": epsilon,
        "centered": centered,
        "keep_sum": keep_sum,
    }
    plain = functools.partial(reference, **given)
    if not native:
        return plain(*arrays)
    present = [a is not None for a in arrays]

    def whole(parts: tuple[jax.Array, ...]) -> list[Any]:
        rest = iter(parts)
        return [next(rest) if there else None for there in present]

    @jax.custom_batching.custom_vmap
    def fast(*parts: jax.Array) -> tuple[jax.Array, ...]:
        outs: tuple[jax.Array, ...] = cpu.cpu(*whole(parts), **given)
        return tuple(vary(out, varying(parts)) for out in outs)

    @fast.def_vmap
    def _(size: int, mapped: list[bool], *parts: jax.Array) -> Any:
        by_place = dict(
            zip([i for i, p in enumerate(present) if p], mapped, strict=True)
        )
        if by_place.get(2) or by_place.get(3):
            axes = [0 if m else None for m in mapped]
            outs = jax.vmap(lambda *p: plain(*whole(p)), axes)(*parts)
        else:
            outs = fast(
                *(
                    jnp.broadcast_to(p, (size, *p.shape)) if not m and i < 2 else p
                    for (i, m), p in zip(by_place.items(), parts, strict=True)
                )
            )
        return outs, tuple(True for _ in outs)

    @jax.custom_jvp
    def product(*parts: jax.Array) -> tuple[jax.Array, ...]:
        if not by_platform:
            only: tuple[jax.Array, ...] = fast(*parts)
            return only
        outs: tuple[jax.Array, ...] = jax.lax.platform_dependent(
            *parts, cpu=fast, default=lambda *p: plain(*whole(p))
        )
        return outs

    @product.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return jax.jvp(lambda *p: plain(*whole(p)), primals, tangents)

    outs: tuple[jax.Array, ...] = product(*(a for a in arrays if a is not None))
    return outs


def _check_implementation(implementation: Any, why: str) -> None:
    if implementation is None:
        return
    if not isinstance(implementation, Implementation):
        raise TypeError(
            f"{_NAME}: implementation is None or one of {list(Implementation)}, not "
            f"{implementation!r}"
        )
    if implementation not in _HAS:
        raise NotImplementedError(
            f"{_NAME} has no {implementation!r}; it has {list(_HAS)}"
        )
    if implementation is Implementation.CPU and why:
        raise NotImplementedError(f"{_NAME}: {implementation!r} {why}")


def _check(x: Any, scale: Any, bias: Any, residual: Any) -> None:
    if x.ndim < 1 or x.shape[-1] == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{_NAME}: x is floats [..., C], not {said(x)}")
    for name, one in (("scale", scale), ("bias", bias)):
        if one is not None and one.shape != (x.shape[-1],):
            raise ValueError(
                f"{_NAME}: {name} has one number for each of the last axis of x, "
                f"[{x.shape[-1]}], not {said(one)}"
            )
    if residual is not None and (
        residual.shape != x.shape or residual.dtype != x.dtype
    ):
        raise ValueError(
            f"{_NAME}: residual is of the shape and dtype of x, {said(x)}, not "
            f"{said(residual)}"
        )

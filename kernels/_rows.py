"""What products share that depends on rows: checks, shapes of scales and biases."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def by_row(number: jax.Array | None, batch: tuple[int, ...]) -> jax.Array | None:
    """One number for each row: a scalar or what broadcasts to [*batch, 1] -> [M, 1]."""
    if number is None:
        return None
    if number.ndim == 0:
        return jnp.broadcast_to(number, (math.prod(batch), 1))
    return jnp.broadcast_to(number, (*batch, 1)).reshape(math.prod(batch), 1)


def check_row_scale(name: str, x: jax.Array, scale: jax.Array) -> None:
    """Raise ValueError unless a scale is float32 and a scalar or one for each row."""
    wanted = (*x.shape[:-1], 1)
    broadcasts = scale.ndim == 0 or (
        scale.ndim == len(wanted)
        and all(a in (1, b) for a, b in zip(scale.shape, wanted, strict=True))
    )
    if not broadcasts or scale.dtype != jnp.float32:
        raise ValueError(
            f"{name}: x_scale is a float32 scalar or {list(wanted)}, not {said(scale)}"
        )


def check_outputs(
    name: str, outputs: int, scales: jax.Array, bias: jax.Array | None
) -> None:
    """Raise ValueError unless there are scales, and biases if any, for all outputs."""
    if scales.shape not in ((1, 1), (outputs, 1)) or scales.dtype != jnp.float32:
        raise ValueError(
            f"{name}: scales is float32 [{outputs} or 1, 1], not {said(scales)}; "
            "weights with several groups need weight_only_matmul"
        )
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != jnp.float32):
        raise ValueError(f"{name}: bias is float32 [{outputs}], not {said(bias)}")


def at_most(size: Any, most: int, *, unknown: bool) -> bool:
    """Whether a size is at most `most`; `unknown` if it is symbolic and may be both."""
    try:
        return bool(size <= most)
    except jax.errors.InconclusiveDimensionOperation:
        return unknown


def said(array: Any) -> str:
    """Dtype and shape, for errors."""
    return f"{array.dtype} {list(array.shape)}"

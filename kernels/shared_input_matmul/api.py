"""`shared_input_matmul`: one input, several weights, as query, key and value have."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcompress.formats import Int
from jcompress.formats.packing import FLOAT8
from jcompress.kernels._dispatch import Implementation
from jcompress.kernels._epilogue import After, Elementwise, after_rows, finish
from jcompress.kernels._integers import quantize_rows, row_scale
from jcompress.kernels._operation import Arrays, KernelOperation
from jcompress.kernels.shared_input_matmul.forms import ARRAYS, FORMS, by_weight
from jcompress.kernels.weight_only_matmul.api import (
    check,
    constant_weight,
    roles_of,
    weight_only_matmul,
)

_NAME = "shared_input_matmul"


class Part(NamedTuple):
    """One of the weights, and what follows its product.

    Attributes:
        values: stored numbers of [N, K], as `weight_only_matmul` takes them.
        scales: float32 [N or 1, G].
        zeros: int8 of the shape of `scales`, or None.
        bits: of a number of the weight, 2 to 8.
        bias: float32 [N], or None.
        then: the activation, or None.
    """

    values: jax.Array
    scales: jax.Array
    zeros: jax.Array | None = None
    bits: int = 8
    bias: jax.Array | None = None
    then: Elementwise | None = None


def shared_input_matmul(
    x: jax.Array,
    weights: Sequence[Part],
    *,
    x_bits: int | None = None,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, ...]:
    """Multiply one input by several weights: `weight_only_matmul` with each.

    The results are the same, bit for bit. On CPUs the rows are quantized once, and the
    pieces of all products are spread over the threads together, if the weights are laid
    out alike: integers of the same width, in as many groups, all or none with zeros.
    Others are multiplied one after the other. Differentiable in reverse with respect to
    `x` and each `bias`.

    Args:
        x: floats [..., K].
        weights: with the same K and any N.
        x_bits: bits of an integer of the activations, 2 to 8; None for floats.
        implementation: None for the fastest.

    Returns:
        [..., N] in the dtype of `x` for each weight.

    Raises:
        ValueError: there are no weights, or shapes or dtypes do not fit.
        TypeError: `implementation` or a `then` is of another kind.
        NotImplementedError: as `weight_only_matmul`.
    """
    if not weights:
        raise ValueError(f"{_NAME}: there are no weights")
    if len(weights) == 1 or len({_layout(part) for part in weights}) > 1:
        return tuple(
            weight_only_matmul(
                x, part.values, part.scales, part.zeros, bits=part.bits, x_bits=x_bits,
                bias=part.bias, then=part.then, implementation=implementation,
            )
            for part in weights
        )  # fmt: skip
    batch = x.shape[:-1]
    arrays: list[Any] = []
    numbers: list[int] = []
    constant = True
    for part in weights:
        check(_NAME, x, part.values, part.scales, part.zeros, part.bits, x_bits)
        outputs = part.values.shape[0]
        after_rows(
            _NAME, batch, outputs, x.dtype, part.then, bias=part.bias,
            factor=None, residual=None,
        )  # fmt: skip
        scales = jnp.broadcast_to(part.scales, (outputs, part.scales.shape[1]))
        zeros = part.zeros
        if zeros is not None:
            zeros = jnp.broadcast_to(zeros, scales.shape)
        arrays += [part.values, scales, zeros, part.bias]
        own = constant_weight(part.values, scales, zeros, bits=part.bits)
        constant = constant and own is not None
        numbers += own or ()
    products = _OPERATION.several(
        x.reshape(math.prod(batch), x.shape[-1]),
        *arrays,
        implementation=implementation,
        constant=tuple(numbers) if constant else None,
        bits=weights[0].bits,
        x_bits=x_bits,
        thens=tuple(part.then or Elementwise() for part in weights),
    )
    return tuple(y.reshape(*batch, y.shape[1]) for y in products)


def _layout(part: Part) -> tuple[Any, ...]:
    """What weights that share their input have in common."""
    floating = part.values.dtype == FLOAT8
    return (part.bits, floating, part.scales.shape[-1:], part.zeros is None)


def _roles(x: jax.Array, *arrays: Any, bits: int, **static: Any) -> tuple[str, ...]:
    found: tuple[str, ...] = ()
    for *weight, bias in by_weight(arrays):
        x_role, *own = roles_of(x, *weight, bits=bits)
        found = (*found, *own, *(() if bias is None else ("n",)))
    return (x_role, *found)


def _results(x: jax.Array, *arrays: Any, **static: Any) -> int:
    return len(arrays) // ARRAYS


def _backward(
    saved: Arrays,
    cotangents: tuple[jax.Array, ...],
    *,
    bits: int,
    x_bits: int | None,
    thens: tuple[Elementwise, ...],
) -> Arrays:
    x, *arrays = saved
    weights = by_weight(tuple(arrays))

    def separate(x: jax.Array, biases: list[Any]) -> tuple[jax.Array, ...]:
        return tuple(
            weight_only_matmul(
                x, *weight, bits=bits, x_bits=x_bits, bias=bias, then=then
            )
            for (*weight, _), bias, then in zip(weights, biases, thens, strict=True)
        )

    biases = [bias for *_, bias in weights]
    gradient, by_bias = jax.vjp(separate, x, biases)[1](cotangents)
    constants = (None,) * (ARRAYS - 1)
    return (gradient, *(one for bias in by_bias for one in (*constants, bias)))


def _over_parts(
    run: Callable[..., tuple[jax.Array, ...]],
    names: tuple[str, ...],
    x: jax.Array,
    *arrays: Any,
    bits: int,
    x_bits: int | None,
    thens: tuple[Elementwise, ...],
) -> tuple[jax.Array, ...]:
    weights = by_weight(arrays)
    plain = [a for *weight, _ in weights for a in (*weight, None)]
    scale = None
    if x_bits is not None:
        # Small integers are exact in any float: what is left are products of floats.
        scale = row_scale(x, Int(x_bits), names)
        q, _, _ = quantize_rows(x, scale, None, x_bits)
        x = q.astype(x.dtype)
    nothing = len(weights) * (Elementwise(),)
    parts = run(x, *plain, x_bits=None, thens=nothing)
    products = []
    for part, (*_, bias), then in zip(parts, weights, thens, strict=True):
        total: jax.Array = jax.lax.psum(part.astype(jnp.float32), names)
        if scale is not None:
            total = total * scale
        products.append(finish(total, After(then, bias)))
    return tuple(products)


_OPERATION = KernelOperation(
    name=_NAME,
    forms=FORMS,
    roles=_roles,
    backward=_backward,
    over_parts=_over_parts,
    results=_results,
)

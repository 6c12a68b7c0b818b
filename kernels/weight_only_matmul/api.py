"""`weight_only_matmul`: float activations, weights of small numbers."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.formats import Int
from jcompress.formats.packing import FLOAT8, is_packed, packed_size, stored_dtype
from jcompress.kernels._constants import constant_numbers
from jcompress.kernels._dispatch import Form, Implementation
from jcompress.kernels._epilogue import Elementwise, after_rows
from jcompress.kernels._integers import quantize_rows, row_scale
from jcompress.kernels._operation import Arrays, KernelOperation
from jcompress.kernels._rows import said
from jcompress.kernels.weight_only_matmul import cpu, gpu, tpu
from jcompress.kernels.weight_only_matmul.reference import dense_weight, reference
from jcompress.kernels.weight_only_matmul.xla import xla

_NAME = "weight_only_matmul"
FORMS = {
    Implementation.REFERENCE: Form(reference),
    Implementation.XLA: Form(xla),
    Implementation.CPU: Form(
        cpu.cpu, cpu.refuses, cpu.prefers, stacked=True, finishes=True, keeps=True
    ),
    Implementation.TPU: Form(tpu.tpu, tpu.refuses, tpu.prefers, sized=True),
    Implementation.GPU: Form(gpu.gpu, gpu.refuses, gpu.prefers, sized=True),
}


def weight_only_matmul(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None = None,
    *,
    bits: int,
    x_bits: int | None = None,
    bias: jax.Array | None = None,
    then: Elementwise | None = None,
    factor: jax.Array | None = None,
    residual: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Multiply float activations by a weight stored as small integers or floats.

    `y[..., n] = sum_k x[..., k] * (values[n, k] - zeros[n, g]) * scales[n, g]` with
    `g = k // (K / G)`, accumulated in float32 (int32 within a form) and cast to the
    dtype of `x`. What is left of a layer may follow, in float32:
    `then(y + bias) factor + residual`. With `x_bits` the activations are quantized on
    the way, symmetric, by each row's own range (W4A8, W8A8): `x` is replaced by what
    its integers stand for. The arguments are the arrays of a `QTensor` of one matrix;
    use `jax.vmap` for stacks. Differentiable in reverse with respect to `x`, straight
    through its rounding, `bias`, `factor` and `residual`: the stored arrays count as
    constants. If the gradient needs `y` it is computed again.

    On a mesh each device multiplies the part of the weight that it has; where the
    inputs are cut, the parts are summed over the devices. Only a cut in the middle of a
    group of scales or of a byte is undone first.

    Args:
        x: floats [..., K].
        values: int8 [N, K]; for `bits <= 4`, uint8 [N, ceil(K bits / 8)], as
            `jcompress.formats.packing.pack_bits` packs them; or, for `bits == 8`
            without `zeros` and `x_bits`, float8_e4m3fn [N, K].
        scales: float32 [N or 1, G], where G divides K.
        zeros: int8 of the shape of `scales`, or None.
        bits: bits of a number of the weight, 2 to 8.
        x_bits: bits of an integer of the activations, 2 to 8; None for floats.
        bias: float32 [N], or None.
        then: the activation that follows, or None.
        factor: what the result is then multiplied by, number by number, [..., N] in its
            dtype, or None.
        residual: what is added last, as `factor`.
        implementation: None for the fastest (benchmarks/README.md).

    Returns:
        [..., N] in the dtype of `x`.

    Raises:
        ValueError: shapes or dtypes do not fit.
        TypeError: `implementation` or `then` is of another kind.
        NotImplementedError: there is no such implementation, or it cannot compute
            these shapes and dtypes.
    """
    check(_NAME, x, values, scales, zeros, bits, x_bits)
    outputs = values.shape[0]
    scales = jnp.broadcast_to(scales, (outputs, scales.shape[1]))
    after = after_rows(
        _NAME, x.shape[:-1], outputs, x.dtype, then,
        bias=bias, factor=factor, residual=residual,
    )  # fmt: skip
    product = _OPERATION(
        x.reshape(math.prod(x.shape[:-1]), x.shape[-1]),
        values,
        scales,
        None if zeros is None else jnp.broadcast_to(zeros, scales.shape),
        implementation=implementation,
        after=after,
        constant=constant_weight(values, scales, zeros, bits=bits),
        bits=bits,
        x_bits=x_bits,
    )
    return product.reshape(*x.shape[:-1], outputs)


def constant_weight(
    values: jax.Array, scales: jax.Array, zeros: jax.Array | None, *, bits: int
) -> tuple[int, ...] | None:
    """Numbers of what is laid out of a weight, if it is constant; else None.

    Of other bits than four and eight the layout would take more memory than the weight.
    """
    if bits not in (4, 8):
        return None
    grouped = [scales] if zeros is None else [scales, zeros]
    return constant_numbers(values, *(grouped if scales.shape[1] > 1 else []))


def roles_of(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    **static: Any,
) -> tuple[str, ...]:
    """The letters of the axes of a product's arrays (`KernelOperation.roles`)."""
    # Parts of a stream that ends within a byte are no parts of the inputs.
    whole = not is_packed(bits) or x.shape[1] * bits % 8 == 0
    inputs = "k" if whole else "."
    groups = "n" + (inputs if scales.shape[1] > 1 else ".")
    roles = ("m" + inputs, "n" + inputs, groups)
    return roles if zeros is None else (*roles, groups)


def _save(x: jax.Array, *weight: Any, **static: Any) -> Arrays:
    # Of the activations only the dtype and the number of inputs matter.
    return (x[:0], *weight)


def _backward(
    saved: Arrays, cotangent: jax.Array, *, bits: int, x_bits: int | None
) -> Arrays:
    x, *weight = saved
    dense = dense_weight(*weight, bits=bits, inputs=x.shape[1])
    gradient = jnp.matmul(cotangent.astype(jnp.float32), dense)
    return (gradient.astype(x.dtype), None, None, None)


def _over_parts(
    run: Callable[..., jax.Array],
    names: tuple[str, ...],
    x: jax.Array,
    *weight: Any,
    bits: int,
    x_bits: int | None,
) -> jax.Array:
    if x_bits is None:
        part = run(x, *weight).astype(jnp.float32)
        total: jax.Array = jax.lax.psum(part, names)
        return total
    # Small integers are exact in any float: what is left is a product of floats.
    scale = row_scale(x, Int(x_bits), names)
    q, _, _ = quantize_rows(x, scale, None, x_bits)
    part = run(q.astype(x.dtype), *weight, x_bits=None).astype(jnp.float32)
    total = jax.lax.psum(part, names)
    return total * scale


_OPERATION = KernelOperation(
    name=_NAME,
    forms=FORMS,
    roles=roles_of,
    backward=_backward,
    save=_save,
    over_parts=_over_parts,
)


def check(
    name: str,
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    bits: int,
    x_bits: int | None,
) -> None:
    """Raise ValueError unless the arrays fit; `name` is the operation's."""
    for label, given in (("bits", bits), ("x_bits", x_bits)):
        if given is not None and not 2 <= given <= 8:
            raise ValueError(f"{name}: {label} is from 2 to 8, not {given!r}")
    if x.ndim < 1 or x.shape[-1] < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: x is floats [..., K], not {said(x)}")
    inputs = x.shape[-1]
    stored = packed_size(inputs, bits)
    floating = values.dtype == FLOAT8
    if floating and (bits != 8 or zeros is not None or x_bits is not None):
        raise ValueError(
            f"{name}: float8 values need bits=8, no zeros and no x_bits (float8 "
            "activations: float8_matmul)"
        )
    dtype = FLOAT8 if floating else stored_dtype(bits)
    fits = values.ndim == 2 and values.shape[1] == stored and values.dtype == dtype
    if not fits:
        raise ValueError(
            f"{name}: for {inputs} inputs and {bits} bits, values is {dtype} "
            f"[N, {stored}], not {said(values)}"
        )
    outputs = values.shape[0]
    rows = scales.ndim == 2 and scales.shape[0] in (1, outputs)
    groups = rows and scales.shape[1] > 0 and inputs % scales.shape[1] == 0
    if not groups or scales.dtype != jnp.float32:
        raise ValueError(
            f"{name}: scales is float32 [{outputs} or 1, G] with G a divisor of "
            f"{inputs}, not {said(scales)}"
        )
    if zeros is not None and (zeros.shape != scales.shape or zeros.dtype != jnp.int8):
        raise ValueError(
            f"{name}: zeros is int8 of the shape of scales {list(scales.shape)}, not "
            f"{said(zeros)}"
        )

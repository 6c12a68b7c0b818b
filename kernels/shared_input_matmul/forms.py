"""The implementations of `shared_input_matmul`.

Compiled kernels for CPUs lay the rows out once for all weights and spread the pieces of
all products over the threads. The others are those of `weight_only_matmul`, one after
the other: XLA sees by itself that they quantize the same rows.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels import _native
from jcompress.kernels._dispatch import Form, Implementation
from jcompress.kernels._epilogue import After, Elementwise, finish
from jcompress.kernels.weight_only_matmul.api import FORMS as SINGLE

ARRAYS = 4
"""Of each weight: values, scales, zeros and bias."""


def by_weight(arrays: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The arrays of each weight, of those of all in one tuple."""
    return [arrays[i : i + ARRAYS] for i in range(0, len(arrays), ARRAYS)]


def one_by_one(form: Form) -> Callable[..., tuple[jax.Array, ...]]:
    """Compute each product by a form of `weight_only_matmul`, [M, K] -> [M, N]."""

    def run(
        x: jax.Array,
        *arrays: Any,
        bits: int,
        x_bits: int | None,
        thens: tuple[Elementwise, ...],
    ) -> tuple[jax.Array, ...]:
        products = []
        for weight, then in zip(by_weight(arrays), thens, strict=True):
            *stored, bias = weight
            given = {"bits": bits, "x_bits": x_bits}
            if bias is None and then == Elementwise():
                products.append(form.run(x, *stored, **given))
                continue
            wide = form.run(x, *stored, out_dtype=jnp.float32, **given)
            products.append(finish(wide, After(then, bias)).astype(x.dtype))
        return tuple(products)

    return run


def cpu(
    x: jax.Array,
    *arrays: Any,
    bits: int,
    x_bits: int | None,
    thens: tuple[Elementwise, ...],
    fixed: bool,
) -> tuple[jax.Array, ...]:
    """[S, M, K] x each stored [S, N, K] -> [S, M, N], in one call."""
    exact = 2 if x.dtype.itemsize < 4 else 3
    weights = [
        (values, scales, zeros, After(then, bias))
        for (values, scales, zeros, bias), then in zip(
            by_weight(arrays), thens, strict=True
        )
    ]
    return _native.shared_input(
        x,
        weights,
        bits=bits if bits <= 4 else 8,
        x_bits=8 if x_bits is None else x_bits,
        digits=exact if x_bits is None else 1,
        fixed=fixed,
    )


def refuses(form: Form) -> Callable[..., str]:
    """Why a form of `weight_only_matmul` cannot compute one of the products."""

    def why(x: Any, *arrays: Any, bits: int, x_bits: int | None, thens: Any) -> str:
        reasons = (
            form.refuses(x, *weight[:-1], bits=bits, x_bits=x_bits)
            for weight in by_weight(arrays)
        )
        return next(filter(None, reasons), "")

    return why


def prefers(form: Form) -> Callable[..., bool]:
    """Whether such a form is the better choice for all products."""

    def suits(x: Any, *arrays: Any, bits: int, x_bits: int | None, thens: Any) -> bool:
        return all(
            form.prefers(x, *weight[:-1], bits=bits, x_bits=x_bits)
            for weight in by_weight(arrays)
        )

    return suits


FORMS = {
    kind: Form(
        cpu if kind is Implementation.CPU else one_by_one(form),
        refuses(form),
        prefers(form),
        stacked=form.stacked,
        sized=form.sized,
        keeps=form.keeps,
    )
    for kind, form in SINGLE.items()
}

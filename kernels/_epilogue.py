"""What follows a product in the same call: bias, activation, gate, residual.

A model's layer rarely ends with its product. What comes after it touches each number of
the result once, so a product that does it before the result leaves the cache saves a
pass over memory, and one that knows the number in float32 saves a rounding.
"""

import dataclasses
import enum
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcompress.kernels._rows import said


class Nonlinearity(enum.Enum):
    """A function of one number, computed in float32."""

    RELU = "relu"
    """`max(x, 0)`."""
    RELU6 = "relu6"
    """`min(max(x, 0), 6)`."""
    SQUARED_RELU = "squared_relu"
    """`max(x, 0)^2`."""
    GELU = "gelu"
    """`x (1 + erf(x / sqrt(2))) / 2`."""
    GELU_TANH = "gelu_tanh"
    """`x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`."""
    SILU = "silu"
    """`x / (1 + exp(-x))`."""
    TANH = "tanh"
    """`tanh(x)`."""
    SIGMOID = "sigmoid"
    """`1 / (1 + exp(-x))`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply it to each number of floats of any shape."""
        match self:
            case Nonlinearity.RELU:
                return jax.nn.relu(x)
            case Nonlinearity.RELU6:
                return jax.nn.relu6(x)
            case Nonlinearity.SQUARED_RELU:
                return jnp.square(jax.nn.relu(x))
            case Nonlinearity.GELU:
                return jax.nn.gelu(x, approximate=False)
            case Nonlinearity.GELU_TANH:
                return jax.nn.gelu(x, approximate=True)
            case Nonlinearity.SILU:
                return jax.nn.silu(x)
            case Nonlinearity.TANH:
                return jnp.tanh(x)
            case Nonlinearity.SIGMOID:
                return jax.nn.sigmoid(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elementwise:
    """What is applied to each number of a product's result.

    `y = activation(x W + bias)`, then `y *= factor`, then `y += residual`, in float32
    before `y` gets its dtype; the arrays are arguments of the product, each optional.

    Attributes:
        activation: None for none.
    """

    activation: Nonlinearity | None = None


class After(NamedTuple):
    """What follows a product, with its arrays.

    Attributes:
        then: the functions.
        bias: float32 [..., N], or None.
        factor: [..., M, N] in the dtype of the result, or None.
        residual: the same.
    """

    then: Elementwise
    bias: jax.Array | None = None
    factor: jax.Array | None = None
    residual: jax.Array | None = None


ROLES = ("n", "mn", "mn")
"""Of the arrays of what follows, as those of `KernelOperation`."""


def finish(product: jax.Array, after: After) -> jax.Array:
    """Apply what follows to float32 products [..., M, N]."""
    y = product
    if after.bias is not None:
        y = y + after.bias[..., None, :]
    if after.then.activation is not None:
        y = after.then.activation(y)
    if after.factor is not None:
        y = y * after.factor.astype(jnp.float32)
    if after.residual is not None:
        y = y + after.residual.astype(jnp.float32)
    return y


def after_rows(
    name: str,
    rows: tuple[int, ...],
    outputs: int,
    dtype: Any,
    then: Elementwise | None,
    *,
    bias: jax.Array | None = None,
    factor: jax.Array | None,
    residual: jax.Array | None,
) -> After | None:
    """What follows a product of `[*rows, K]`, for its rows in one axis.

    Args:
        name: of the operation, for errors.
        rows: the axes of the activations but the last.
        outputs: N.
        dtype: of the result.
        then, bias, factor, residual: as the operation got them.

    Returns:
        None if nothing follows.

    Raises:
        TypeError: `then` is no `Elementwise`.
        ValueError: shapes or dtypes do not fit.
    """
    if then is not None and not isinstance(then, Elementwise):
        raise TypeError(f"{name}: then is an Elementwise or None, not {then!r}")
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != jnp.float32):
        raise ValueError(f"{name}: bias is float32 [{outputs}], not {said(bias)}")
    wanted = (*rows, outputs)
    for label, array in (("factor", factor), ("residual", residual)):
        if array is not None and (array.shape != wanted or array.dtype != dtype):
            raise ValueError(
                f"{name}: {label} has the dtype and shape of the result, "
                f"{jnp.dtype(dtype)} {list(wanted)}, not {said(array)}"
            )
    then = then or Elementwise()
    if then == Elementwise() and bias is None and factor is None and residual is None:
        return None

    def flat(array: jax.Array | None) -> jax.Array | None:
        if array is None:
            return None
        return array.reshape(math.prod(rows), outputs)

    return After(then, bias, flat(factor), flat(residual))

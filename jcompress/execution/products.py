"""Which kernel multiplies with a compressed leaf."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.execution.how import How
from jcompress.formats import Float8, Int, NumberFormat
from jcompress.kernels import Implementation
from jcompress.kernels.block_sparse_matmul import block_sparse_matmul
from jcompress.kernels.codebook_matmul import codebook_matmul
from jcompress.kernels.float8_matmul import float8_matmul
from jcompress.kernels.int8_matmul import int8_matmul
from jcompress.kernels.nm_sparse_matmul import nm_sparse_matmul
from jcompress.kernels.unstructured_sparse_matmul import unstructured_sparse_matmul
from jcompress.kernels.vector_codebook_matmul import vector_codebook_matmul
from jcompress.kernels.weight_only_matmul import weight_only_matmul
from jcompress.tensors import (
    BlockSparse,
    Codebook,
    CompressedTensor,
    LowRank,
    NMSparse,
    QTensor,
    UnstructuredSparse,
    VectorCodebook,
    WithOutliers,
)
from jcompress.tensors.low_rank import Factor
from jcompress.tensors.specs import Activation, PerRow


def _multiplied_as_stored(data: NumberFormat, weights: NumberFormat) -> bool:
    """Whether a kernel multiplies numbers of the one format with those of the other."""
    if isinstance(data, Int):
        return isinstance(weights, Int) and data.bits <= 8
    return data == weights == Float8()


Multiply = Callable[..., jax.Array]
"""`multiply(rows [M, K], x_scale, x_zero, tensor of one matrix) -> [M, N]`.

Those chosen by `LeafKernel` take the keyword arguments of the kernel besides.
"""


@dataclasses.dataclass(frozen=True)
class LeafKernel:
    """The product that suits a compressed leaf at a site.

    Attributes:
        how: what it is called.
        multiply: the product.
        quantizes: whether it rounds its rows itself; if not, they come rounded.
        own_range: whether it finds the range of each row itself.
        finishes: whether it takes what follows the product (`bias`, `then`, `factor`
            and `residual`) as keyword arguments.
        shares: whether several weights can be multiplied with one input in one call.
        x_bits: of the integers that its rows become there; None for floats.
    """

    how: How
    multiply: Multiply
    quantizes: bool = False
    own_range: bool = False
    finishes: bool = False
    shares: bool = False
    x_bits: int | None = None

    @classmethod
    def of(
        cls,
        tensor: CompressedTensor,
        activation: Activation | None,
        eqn: Any,
        implementation: Implementation | None,
    ) -> "LeafKernel | str":
        """Choose it for an equation, or say why there is none.

        Args:
            tensor: the leaf.
            activation: how its data is quantized; None for floats.
            eqn: the equation.
            implementation: which one of the kernel runs; None for the fastest.
        """
        found = cls._by_type(tensor, activation, eqn)
        if isinstance(found, str):
            return found
        multiply = functools.partial(found.multiply, implementation=implementation)
        return dataclasses.replace(found, multiply=multiply)

    @classmethod
    def _by_type(
        cls, tensor: CompressedTensor, activation: Activation | None, eqn: Any
    ) -> "LeafKernel | str":
        match tensor:
            case LowRank():
                if tensor.windows:
                    return "its factors are those of a convolution"
                return cls(How.FACTORS, functools.partial(_low_rank, eqn=eqn))
            case BlockSparse():
                return cls(How.SPARSE, _block_sparse)
            case NMSparse():
                return cls(How.SPARSE, _nm_sparse)
            case UnstructuredSparse():
                return cls(How.SPARSE, _unstructured_sparse)
            case Codebook():
                return cls(How.CODEBOOK, _codebook)
            case VectorCodebook():
                return cls(How.CODEBOOK, _vector_codebook)
            case WithOutliers():
                if tensor.stack_axes:
                    return "its outliers are those of several matrices"
                return cls(How.WEIGHT_ONLY, _with_outliers)
            case QTensor():
                if activation is None:
                    return cls(How.WEIGHT_ONLY, _weight_only, shares=True, **_FLOATS)
                if not _multiplied_as_stored(activation.format, tensor.format):
                    return cls(How.WEIGHT_ONLY, _weight_only, **_FLOATS)
                return cls._quantized(tensor, activation, eqn.primitive.name)
        return f"there is no kernel for a {type(tensor).__name__}"

    @classmethod
    def _quantized(
        cls, tensor: QTensor, activation: Activation, primitive: str
    ) -> "LeafKernel":
        bits = activation.format.bits
        # In a convolution the rows of an image share a range.
        by_row = (
            isinstance(activation.granularity, PerRow)
            and activation.format.symmetric
            and primitive != "conv_general_dilated"
        )
        one_group = tensor.scales.shape[-1] == 1
        if isinstance(tensor.format, Float8):
            if one_group:
                return cls(How.FLOAT8, _float8, quantizes=True, own_range=by_row)
            return cls(How.WEIGHT_ONLY, _weight_only, **_FLOATS)
        if by_row and (tensor.format.bits <= 4 or not one_group):
            multiply = functools.partial(_weight_only, x_bits=bits)
            return cls(How.INTEGER, multiply, **_integers(bits, own_range=True))
        if one_group:
            multiply = functools.partial(_integer, x_bits=bits)
            return cls(How.INTEGER, multiply, **_integers(bits, own_range=by_row))
        return cls(How.WEIGHT_ONLY, _weight_only, **_FLOATS)


_FLOATS: dict[str, Any] = {"finishes": True}
"""What a product of floats with stored integers does."""


def _integers(bits: int, *, own_range: bool) -> dict[str, Any]:
    """What a product of integers with integers does."""
    every: dict[str, Any] = {"quantizes": True, "finishes": True}
    return {**every, "own_range": own_range, "shares": own_range, "x_bits": bits}


def factor_product(
    x: jax.Array, factor: Factor, eqn: Any, implementation: Implementation | None
) -> jax.Array:
    """Multiply rows by one factor of a `LowRank`: [..., K] x [R, K] -> [..., R].

    Args:
        x: floats.
        factor: an array or a compressed leaf, of one matrix.
        eqn: the equation that the whole leaf is used in; its dtypes and its precision
            hold for each factor.
        implementation: which one of a kernel runs; None for the fastest.
    """
    dtype = product_dtype(eqn)
    known = factor.for_kernels() if isinstance(factor, QTensor) else factor
    if isinstance(known, CompressedTensor):
        kernel = LeafKernel.of(known, None, eqn, implementation)
        assert isinstance(kernel, LeafKernel)
        return kernel.multiply(x.astype(dtype), None, None, known)
    if isinstance(factor, CompressedTensor):
        factor = factor.dense()
    return jax.lax.dot_general(
        x.astype(dtype),
        factor.astype(dtype),
        (((x.ndim - 1,), (1,)), ((), ())),
        precision=eqn.params["precision"],
        preferred_element_type=summed_dtype(dtype),
    )


def product_dtype(eqn: Any) -> Any:
    """The float dtype in which an equation multiplies data with a weight."""
    kinds = {atom.aval.dtype for atom in eqn.invars[:2]}
    floats = {kind for kind in kinds if jnp.issubdtype(kind, jnp.floating)}
    widest = max((jnp.finfo(kind).bits for kind in floats), default=0)
    found = {kind for kind in floats if jnp.finfo(kind).bits == widest}
    return found.pop() if len(found) == 1 else jnp.dtype(jnp.float32)


def summed_dtype(dtype: Any) -> Any:
    """The dtype in which products of a float dtype are summed: float32 at least."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def _low_rank(
    x: jax.Array,
    _: None,
    __: None,
    leaf: LowRank,
    *,
    eqn: Any,
    implementation: Implementation | None,
) -> jax.Array:
    for factor in leaf.factors:
        x = factor_product(x, factor, eqn, implementation)
    return x


def _block_sparse(
    x: jax.Array, _: None, __: None, leaf: BlockSparse, **how: Any
) -> jax.Array:
    parts = (leaf.blocks, leaf.columns, leaf.starts, leaf.scales)
    return block_sparse_matmul(x, *parts, **how)


def _nm_sparse(
    x: jax.Array, _: None, __: None, leaf: NMSparse, **how: Any
) -> jax.Array:
    parts = (leaf.values, leaf.mask, leaf.scales)
    return nm_sparse_matmul(x, *parts, n=leaf.n, m=leaf.m, **how)


def _unstructured_sparse(
    x: jax.Array, _: None, __: None, leaf: UnstructuredSparse, **how: Any
) -> jax.Array:
    parts = (leaf.values, leaf.mask, leaf.starts, leaf.scales)
    return unstructured_sparse_matmul(x, *parts, **how)


def _codebook(x: jax.Array, _: None, __: None, leaf: Codebook, **how: Any) -> jax.Array:
    return codebook_matmul(x, leaf.indices, leaf.codebook, **how)


def _vector_codebook(
    x: jax.Array, _: None, __: None, leaf: VectorCodebook, **how: Any
) -> jax.Array:
    return vector_codebook_matmul(x, leaf.codes, leaf.tables, leaf.scales, **how)


def _weight_only(
    x: jax.Array, _: None, __: None, leaf: QTensor, **how: Any
) -> jax.Array:
    parts = (leaf.values, leaf.scales, leaf.zeros)
    return weight_only_matmul(x, *parts, bits=leaf.format.bits, **how)


def _with_outliers(
    x: jax.Array, _: None, __: None, leaf: WithOutliers, **how: Any
) -> jax.Array:
    outputs, inputs = leaf.matrix_shape
    most = _weight_only(x, None, None, leaf.base, **how)
    picked = jnp.take(x, leaf.places % np.int32(inputs), axis=-1)
    flat = picked.reshape(-1, picked.shape[-1]).astype(jnp.float32)
    flat = flat * leaf.values.astype(jnp.float32)[None]
    rest = jax.ops.segment_sum(
        flat.T, leaf.places // np.int32(inputs), outputs, indices_are_sorted=True
    ).T
    both = most.astype(jnp.float32) + rest.reshape(most.shape)
    return both.astype(most.dtype)


def _integer(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    leaf: QTensor,
    **how: Any,
) -> jax.Array:
    parts = (leaf.numbers, leaf.scales, leaf.zeros)
    return int8_matmul(x, *parts, x_scale=x_scale, x_zero=x_zero, **how)


def _float8(
    x: jax.Array, x_scale: jax.Array | None, _: None, leaf: QTensor, **how: Any
) -> jax.Array:
    return float8_matmul(x, leaf.values, leaf.scales, x_scale=x_scale, **how)

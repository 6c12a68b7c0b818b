"""Which product suits a compressed leaf, and how that is told."""

import dataclasses
import enum
import functools
from collections.abc import Callable

import jax

from jcompress.kernels.block_sparse_matmul import block_sparse_matmul
from jcompress.kernels.codebook_matmul import codebook_matmul
from jcompress.kernels.int8_matmul import int8_matmul
from jcompress.kernels.nm_sparse_matmul import nm_sparse_matmul
from jcompress.kernels.weight_only_matmul import weight_only_matmul
from jcompress.quantization.formats import Activation, PerRow
from jcompress.tensors import (
    BlockSparse,
    Codebook,
    CompressedTensor,
    NMSparse,
    QTensor,
)


class How(enum.Enum):
    """How a compressed leaf is used at a site."""

    INTEGER = "integer product"
    """Integers times integers, scaled afterwards."""
    WEIGHT_ONLY = "weight-only product"
    """Floats times stored integers; the dense weight is the kernel's business."""
    SPARSE = "sparse product"
    """Floats times the stored blocks, or the n of every m, that are not zero."""
    CODEBOOK = "codebook product"
    """Floats times values that stored indices pick from a table."""
    ROWS = "rows made dense"
    """Looked up in the stored form; only what was picked is made dense."""
    DENSE = "made dense"
    """The whole leaf is made dense, then used as before."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """How one compressed leaf ran at one site.

    Attributes:
        path: the leaf's name.
        operation: what the leaf does there: a primitive's name.
        how: the way taken.
        why: for `How.DENSE`, what stood in the way of another; else what holds on
            some platforms only.
    """

    path: str
    operation: str
    how: How
    why: str = ""


Multiply = Callable[..., jax.Array]
"""`multiply(rows [M, K], x_scale, x_zero, tensor of one matrix) -> [M, N]`."""


@dataclasses.dataclass(frozen=True)
class LeafKernel:
    """The product that suits a compressed leaf at a site.

    Attributes:
        how: what it is called.
        multiply: the product.
        quantizes: whether it rounds its rows itself; if not, they come rounded.
        own_range: whether it finds the range of each row itself.
    """

    how: How
    multiply: Multiply
    quantizes: bool = False
    own_range: bool = False

    @classmethod
    def of(
        cls, tensor: CompressedTensor, activation: Activation | None, primitive: str
    ) -> "LeafKernel | str":
        """Choose it, or say why there is none."""
        match tensor:
            case BlockSparse():
                return cls(How.SPARSE, _block_sparse)
            case NMSparse():
                return cls(How.SPARSE, _nm_sparse)
            case Codebook():
                return cls(How.CODEBOOK, _codebook)
            case QTensor():
                if activation is None:
                    return cls(How.WEIGHT_ONLY, _weight_only)
                return cls._integers(tensor, activation, primitive)
        return f"there is no kernel for a {type(tensor).__name__}"

    @classmethod
    def _integers(
        cls, tensor: QTensor, activation: Activation, primitive: str
    ) -> "LeafKernel":
        bits = activation.bits
        # In a convolution the rows of an image share a range.
        by_row = (
            isinstance(activation.granularity, PerRow)
            and activation.symmetric
            and primitive != "conv_general_dilated"
        )
        one_group = tensor.scales.shape[-1] == 1
        if by_row and (tensor.bits <= 4 or not one_group):
            multiply = functools.partial(_weight_only, x_bits=bits)
            return cls(How.INTEGER, multiply, quantizes=True, own_range=True)
        if one_group:
            multiply = functools.partial(_integer, x_bits=bits)
            return cls(How.INTEGER, multiply, quantizes=True, own_range=by_row)
        return cls(How.WEIGHT_ONLY, _weight_only)


def _block_sparse(x: jax.Array, _: None, __: None, leaf: BlockSparse) -> jax.Array:
    return block_sparse_matmul(x, leaf.blocks, leaf.columns, leaf.starts, leaf.scales)


def _nm_sparse(x: jax.Array, _: None, __: None, leaf: NMSparse) -> jax.Array:
    return nm_sparse_matmul(x, leaf.values, leaf.mask, leaf.scales, n=leaf.n, m=leaf.m)


def _codebook(x: jax.Array, _: None, __: None, leaf: Codebook) -> jax.Array:
    return codebook_matmul(x, leaf.indices, leaf.codebook)


def _weight_only(
    x: jax.Array, _: None, __: None, leaf: QTensor, *, x_bits: int | None = None
) -> jax.Array:
    return weight_only_matmul(
        x, leaf.values, leaf.scales, leaf.zeros, bits=leaf.bits, x_bits=x_bits
    )


def _integer(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    leaf: QTensor,
    *,
    x_bits: int,
) -> jax.Array:
    return int8_matmul(
        x,
        leaf.integers,
        leaf.scales,
        leaf.zeros,
        x_scale=x_scale,
        x_zero=x_zero,
        x_bits=x_bits,
    )

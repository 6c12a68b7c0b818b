"""Floats times a matrix of which only the blocks that are not zero are stored."""

from jcompress.kernels.block_sparse_matmul.api import (
    block_sparse_matmul as block_sparse_matmul,
)

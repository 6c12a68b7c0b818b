"""Floats times a matrix of which only the weights that are not zero are stored."""

from jcompress.kernels.unstructured_sparse_matmul.api import (
    unstructured_sparse_matmul as unstructured_sparse_matmul,
)

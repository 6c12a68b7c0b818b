"""Floats times a matrix of which n of every m inputs are stored."""

from jcompress.kernels.nm_sparse_matmul.api import nm_sparse_matmul as nm_sparse_matmul

"""Floats times a matrix stored as codes, each for a few weights at once."""

from jcompress.kernels.vector_codebook_matmul.api import (
    vector_codebook_matmul as vector_codebook_matmul,
)

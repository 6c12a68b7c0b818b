"""Floats times a matrix stored as indices into a table of its values."""

from jcompress.kernels.codebook_matmul.api import codebook_matmul as codebook_matmul

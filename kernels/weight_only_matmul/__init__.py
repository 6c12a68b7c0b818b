"""Floats times a matrix of small integers."""

from jcompress.kernels.weight_only_matmul.api import (
    weight_only_matmul as weight_only_matmul,
)

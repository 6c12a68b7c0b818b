"""8-bit floats times a matrix of 8-bit floats."""

from jcompress.kernels.float8_matmul.api import float8_matmul as float8_matmul

"""Small integers times a matrix of small integers."""

from jcompress.kernels.int8_matmul.api import int8_matmul as int8_matmul

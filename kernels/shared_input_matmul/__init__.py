"""Several products of one input."""

from jcompress.kernels.shared_input_matmul.api import Part as Part
from jcompress.kernels.shared_input_matmul.api import (
    shared_input_matmul as shared_input_matmul,
)

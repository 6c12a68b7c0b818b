"""Products with compressed weights, and attention: one folder an operation."""

if __name__ != "jcompress.kernels":
    raise ImportError(
        f"this package was imported as {__name__!r}; import jcompress.kernels instead "
        "(is the repository's root on sys.path?)"
    )

from jcompress.kernels import _native
from jcompress.kernels._dispatch import Implementation as Implementation
from jcompress.kernels._epilogue import Elementwise as Elementwise
from jcompress.kernels._epilogue import Nonlinearity as Nonlinearity
from jcompress.kernels._export import export_checks as export_checks
from jcompress.kernels.attention import attention as attention
from jcompress.kernels.block_sparse_matmul import (
    block_sparse_matmul as block_sparse_matmul,
)
from jcompress.kernels.codebook_matmul import codebook_matmul as codebook_matmul
from jcompress.kernels.float8_matmul import float8_matmul as float8_matmul
from jcompress.kernels.int8_matmul import int8_matmul as int8_matmul
from jcompress.kernels.max_pool import max_pool as max_pool
from jcompress.kernels.nm_sparse_matmul import nm_sparse_matmul as nm_sparse_matmul
from jcompress.kernels.normalize import normalize as normalize
from jcompress.kernels.quantized_conv import quantized_conv as quantized_conv
from jcompress.kernels.shared_input_matmul import Part as Part
from jcompress.kernels.shared_input_matmul import (
    shared_input_matmul as shared_input_matmul,
)
from jcompress.kernels.unstructured_sparse_matmul import (
    unstructured_sparse_matmul as unstructured_sparse_matmul,
)
from jcompress.kernels.vector_codebook_matmul import (
    vector_codebook_matmul as vector_codebook_matmul,
)
from jcompress.kernels.weight_only_matmul import (
    weight_only_matmul as weight_only_matmul,
)

# A loaded `jax.export` artifact calls the compiled kernels by their names.
_native.register()

"""Compressed leaves: pytrees that stand in a parameter tree for a dense array."""

from jcompress.tensors.adapted import Adapted as Adapted
from jcompress.tensors.base import CompressedTensor as CompressedTensor
from jcompress.tensors.base import is_compressed as is_compressed
from jcompress.tensors.block_sparse import BlockSparse as BlockSparse
from jcompress.tensors.codebook import Codebook as Codebook
from jcompress.tensors.hashed import Hashed as Hashed
from jcompress.tensors.low_rank import LowRank as LowRank
from jcompress.tensors.nm_sparse import NMSparse as NMSparse
from jcompress.tensors.outliers import WithOutliers as WithOutliers
from jcompress.tensors.qtensor import QTensor as QTensor
from jcompress.tensors.removed import RemovedArray as RemovedArray
from jcompress.tensors.unstructured_sparse import (
    UnstructuredSparse as UnstructuredSparse,
)
from jcompress.tensors.vector_codebook import VectorCodebook as VectorCodebook

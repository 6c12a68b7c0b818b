"""Quantized weights in the files and trees of other libraries."""

from jcompress.interchange.act_order import ActOrder as ActOrder
from jcompress.interchange.awq import read_awq as read_awq
from jcompress.interchange.awq import write_awq as write_awq
from jcompress.interchange.compressed_tensors import (
    read_compressed_tensors as read_compressed_tensors,
)
from jcompress.interchange.compressed_tensors import (
    write_compressed_tensors as write_compressed_tensors,
)
from jcompress.interchange.files import FileFormatError as FileFormatError
from jcompress.interchange.gguf_read import GgufModel as GgufModel
from jcompress.interchange.gguf_read import read_gguf as read_gguf
from jcompress.interchange.gguf_types import GgmlType as GgmlType
from jcompress.interchange.gguf_write import write_gguf as write_gguf
from jcompress.interchange.gptq import read_gptq as read_gptq
from jcompress.interchange.gptq import write_gptq as write_gptq
from jcompress.interchange.onnx_lowering import OnnxError as OnnxError
from jcompress.interchange.onnx_write import WrittenDense as WrittenDense
from jcompress.interchange.onnx_write import write_onnx as write_onnx
from jcompress.interchange.placing import place as place
from jcompress.interchange.qwix_arrays import from_qwix as from_qwix
from jcompress.interchange.qwix_arrays import to_qwix as to_qwix

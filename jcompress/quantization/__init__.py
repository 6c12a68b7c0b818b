"""Quantization: formats, fake quantization, and trees of packed integers."""

from jcompress.quantization.by_layers import quantize_by_layers as quantize_by_layers
from jcompress.quantization.convert import quantize as quantize
from jcompress.quantization.simulate import calibrate as calibrate
from jcompress.quantization.simulate import fake_quant as fake_quant
from jcompress.quantization.simulate import init_ranges as init_ranges
from jcompress.tensors.formats import Activation as Activation
from jcompress.tensors.formats import Dynamic as Dynamic
from jcompress.tensors.formats import MovingAverage as MovingAverage
from jcompress.tensors.formats import PerChannel as PerChannel
from jcompress.tensors.formats import PerGroup as PerGroup
from jcompress.tensors.formats import PerRow as PerRow
from jcompress.tensors.formats import PerTensor as PerTensor
from jcompress.tensors.formats import Quantize as Quantize
from jcompress.tensors.formats import Weights as Weights
from jcompress.tensors.methods import Gptq as Gptq
from jcompress.tensors.methods import LeastError as LeastError
from jcompress.tensors.methods import Nearest as Nearest
from jcompress.tensors.number_formats import Float8 as Float8
from jcompress.tensors.number_formats import Int as Int

"""Quantization: rules, fake quantization, and trees of packed numbers."""

from jcompress.quantization.by_layers import quantize_by_layers as quantize_by_layers
from jcompress.quantization.convert import quantize as quantize
from jcompress.quantization.simulate import calibrate as calibrate
from jcompress.quantization.simulate import fake_quant as fake_quant
from jcompress.quantization.simulate import init_ranges as init_ranges
from jcompress.quantization.spec import Quantize as Quantize
from jcompress.tensors.range_specs import FullRange as FullRange
from jcompress.tensors.range_specs import LeastError as LeastError
from jcompress.tensors.range_specs import MeanAbsolute as MeanAbsolute
from jcompress.tensors.range_specs import Percentile as Percentile
from jcompress.tensors.specs import Activation as Activation
from jcompress.tensors.specs import Dynamic as Dynamic
from jcompress.tensors.specs import MovingAverage as MovingAverage
from jcompress.tensors.specs import PerBlock as PerBlock
from jcompress.tensors.specs import PerChannel as PerChannel
from jcompress.tensors.specs import PerGroup as PerGroup
from jcompress.tensors.specs import PerRow as PerRow
from jcompress.tensors.specs import PerTensor as PerTensor
from jcompress.tensors.specs import Weights as Weights

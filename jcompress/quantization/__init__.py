"""Quantization: formats, fake quantization, and trees of packed integers."""

from jcompress.quantization._plan import Ranges as Ranges
from jcompress.quantization.arithmetic import Range as Range
from jcompress.quantization.arithmetic import dequantize_values as dequantize_values
from jcompress.quantization.arithmetic import fake_quantize as fake_quantize
from jcompress.quantization.arithmetic import (
    fake_quantize_weight as fake_quantize_weight,
)
from jcompress.quantization.arithmetic import quantize_values as quantize_values
from jcompress.quantization.arithmetic import range_of as range_of
from jcompress.quantization.arithmetic import scale_and_zero as scale_and_zero
from jcompress.quantization.convert import check as check
from jcompress.quantization.convert import quantize as quantize
from jcompress.quantization.formats import Activation as Activation
from jcompress.quantization.formats import Dynamic as Dynamic
from jcompress.quantization.formats import MovingAverage as MovingAverage
from jcompress.quantization.formats import PerChannel as PerChannel
from jcompress.quantization.formats import PerGroup as PerGroup
from jcompress.quantization.formats import PerRow as PerRow
from jcompress.quantization.formats import PerTensor as PerTensor
from jcompress.quantization.formats import Quantize as Quantize
from jcompress.quantization.formats import Weights as Weights
from jcompress.quantization.simulate import calibrate as calibrate
from jcompress.quantization.simulate import fake_quant as fake_quant
from jcompress.quantization.simulate import init_ranges as init_ranges

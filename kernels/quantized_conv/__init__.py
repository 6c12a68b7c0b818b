"""Convolutions of floats or small integers with a kernel of small integers."""

from jcompress.kernels.quantized_conv.api import quantized_conv as quantized_conv

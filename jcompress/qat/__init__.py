"""Quantization-aware training: learned scales, randomness in the weights.

What is trained is made by `init_scales` and given to
`jcompress.quantization.fake_quant(..., scales=...)`, later to
`jcompress.quantization.quantize(..., scales=...)`, which stores what was trained.
"""

from jcompress.qat.freezing import freeze_statistics as freeze_statistics
from jcompress.quantization.learned import Clip as Clip
from jcompress.quantization.learned import LearnedScales as LearnedScales
from jcompress.quantization.learned import Step as Step
from jcompress.quantization.noise import QuantNoise as QuantNoise
from jcompress.quantization.noise import StochasticRounding as StochasticRounding
from jcompress.quantization.noise import WeightNoise as WeightNoise
from jcompress.quantization.scales import init_scales as init_scales
from jcompress.tensors.range_specs import Lsq as Lsq
from jcompress.tensors.range_specs import Pact as Pact

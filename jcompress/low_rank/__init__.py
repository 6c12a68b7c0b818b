"""Weights as products of thin factors, and trainable corrections of low rank."""

from jcompress.low_rank.adapters import Lora as Lora
from jcompress.low_rank.adapters import add_adapters as add_adapters
from jcompress.low_rank.factorizing import Cp as Cp
from jcompress.low_rank.factorizing import Factoring as Factoring
from jcompress.low_rank.factorizing import Spatial as Spatial
from jcompress.low_rank.factorizing import Svd as Svd
from jcompress.low_rank.factorizing import Tucker as Tucker
from jcompress.low_rank.factorizing import factorize as factorize
from jcompress.low_rank.factorizing import quantize_factors as quantize_factors
from jcompress.low_rank.trained import Adapters as Adapters
from jcompress.low_rank.trained import merge_adapters as merge_adapters
from jcompress.low_rank.trained import put_adapters as put_adapters
from jcompress.low_rank.trained import take_adapters as take_adapters

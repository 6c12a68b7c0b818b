"""Which numbers a quantized array is made of, and how they and scales are stored."""

from jcompress.formats.base import NumberFormat as NumberFormat
from jcompress.formats.floats import Float4 as Float4
from jcompress.formats.floats import Float6 as Float6
from jcompress.formats.floats import Float8 as Float8
from jcompress.formats.integers import Binary as Binary
from jcompress.formats.integers import Int as Int
from jcompress.formats.integers import Ternary as Ternary
from jcompress.formats.scales import FloatScales as FloatScales
from jcompress.formats.scales import PowerOfTwoScales as PowerOfTwoScales
from jcompress.formats.scales import QuantizedScales as QuantizedScales
from jcompress.formats.scales import ScaleFormat as ScaleFormat
from jcompress.formats.tables import NormalFloat4 as NormalFloat4

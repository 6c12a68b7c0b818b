"""Which numbers a quantized array is made of, and how they are packed."""

from jcompress.formats.numbers import Float8 as Float8
from jcompress.formats.numbers import Int as Int
from jcompress.formats.numbers import NumberFormat as NumberFormat

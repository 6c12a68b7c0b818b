"""How the numbers of a quantized weight are chosen: to the nearest, or from data."""

from jcompress.rounding.adaround import AdaRound as AdaRound
from jcompress.rounding.base import Nearest as Nearest
from jcompress.rounding.base import Rounded as Rounded
from jcompress.rounding.base import Rounding as Rounding
from jcompress.rounding.descent import CoordinateDescent as CoordinateDescent
from jcompress.rounding.gptq import Gptq as Gptq
from jcompress.rounding.signround import SignRound as SignRound

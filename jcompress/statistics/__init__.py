"""Look inside a function: statistics of what weights meet, and values on their way."""

from jcompress.statistics.kinds import AbsoluteMax as AbsoluteMax
from jcompress.statistics.kinds import Average as Average
from jcompress.statistics.kinds import Count as Count
from jcompress.statistics.kinds import DiagonalMoments as DiagonalMoments
from jcompress.statistics.kinds import Histogram as Histogram
from jcompress.statistics.kinds import Means as Means
from jcompress.statistics.kinds import PowerHistogram as PowerHistogram
from jcompress.statistics.kinds import Ranges as Ranges
from jcompress.statistics.kinds import SecondMoments as SecondMoments
from jcompress.statistics.kinds import Several as Several
from jcompress.statistics.kinds import Statistic as Statistic
from jcompress.statistics.kinds import Sums as Sums
from jcompress.statistics.kinds import Zeros as Zeros
from jcompress.statistics.observing import Observed as Observed
from jcompress.statistics.observing import observe as observe
from jcompress.statistics.tapping import Input as Input
from jcompress.statistics.tapping import NamedScope as NamedScope
from jcompress.statistics.tapping import Output as Output
from jcompress.statistics.tapping import tap as tap

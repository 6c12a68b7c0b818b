"""Move scales between neighbours without changing the function: folding."""

from jcompress.rescaling.folding import Folded as Folded
from jcompress.rescaling.folding import Folding as Folding
from jcompress.rescaling.folding import Neutral as Neutral
from jcompress.rescaling.folding import fold as fold
from jcompress.rescaling.folding import folded as folded

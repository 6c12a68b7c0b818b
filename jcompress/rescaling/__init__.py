"""Move scales between neighbours without changing the function."""

from jcompress.rescaling.awq import awq as awq
from jcompress.rescaling.equalizing import equalize as equalize
from jcompress.rescaling.folding import Folded as Folded
from jcompress.rescaling.folding import FoldFactor as FoldFactor
from jcompress.rescaling.folding import Folding as Folding
from jcompress.rescaling.folding import Neutral as Neutral
from jcompress.rescaling.folding import find_folds as find_folds
from jcompress.rescaling.folding import fold as fold
from jcompress.rescaling.folding import folded as folded
from jcompress.rescaling.rescaled import Rescaled as Rescaled
from jcompress.rescaling.rotating import RotatedAxes as RotatedAxes
from jcompress.rescaling.rotation import Rotated as Rotated
from jcompress.rescaling.rotation import rotate as rotate
from jcompress.rescaling.scalable import ScalableGroup as ScalableGroup
from jcompress.rescaling.scalable import ScalableInputs as ScalableInputs
from jcompress.rescaling.scalable import find_scalable as find_scalable
from jcompress.rescaling.smoothing import smooth as smooth

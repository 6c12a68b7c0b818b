"""Fixed ranges of the data that weights meet, chosen from batches of it."""

from jcompress.calibration.choosing import choose_ranges as choose_ranges
from jcompress.tensors.specs import Entropy as Entropy
from jcompress.tensors.specs import Static as Static

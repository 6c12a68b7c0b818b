"""Several models' weights in one tree: soups, averages over training, task arithmetic.

Models that were not trained from one start are brought into one order by `align` first.
"""

from jcompress.merging.aligning import align as align
from jcompress.merging.averaging import Soup as Soup
from jcompress.merging.averaging import add_tasks as add_tasks
from jcompress.merging.averaging import average as average
from jcompress.merging.averaging import greedy_soup as greedy_soup
from jcompress.merging.during import AverageState as AverageState
from jcompress.merging.during import average_weights as average_weights

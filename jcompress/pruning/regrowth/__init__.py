"""Weights that come back while others go: sparse training from start to end.

Each is given to `prune(..., regrow=...)`. What grows starts at 0, and so do its entries
in the state of the inner optimizer.
"""

from jcompress.pruning.regrowth.alternating import AlternateDense as AlternateDense
from jcompress.pruning.regrowth.alternating import ac_dc as ac_dc
from jcompress.pruning.regrowth.base import Masks as Masks
from jcompress.pruning.regrowth.base import Regrowth as Regrowth
from jcompress.pruning.regrowth.exchange import Growth as Growth
from jcompress.pruning.regrowth.exchange import Regrow as Regrow
from jcompress.pruning.regrowth.exchange import rigl as rigl
from jcompress.pruning.regrowth.exchange import sparse_evolution as sparse_evolution

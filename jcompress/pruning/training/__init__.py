"""Training towards zeros: straight-through, penalties, learned gates, rounds."""

from jcompress.pruning.training.gates import L0 as L0
from jcompress.pruning.training.gates import HardConcrete as HardConcrete
from jcompress.pruning.training.gates import l0_gates as l0_gates
from jcompress.pruning.training.proximal import Lasso as Lasso
from jcompress.pruning.training.proximal import ProximalState as ProximalState
from jcompress.pruning.training.proximal import add_l1 as add_l1
from jcompress.pruning.training.proximal import proximal as proximal
from jcompress.pruning.training.rounds import prune_in_rounds as prune_in_rounds
from jcompress.pruning.training.straight_through import Masked as Masked
from jcompress.pruning.training.straight_through import sr_ste as sr_ste
from jcompress.pruning.training.straight_through import (
    straight_through as straight_through,
)
from jcompress.pruning.training.straight_through import top_kast as top_kast

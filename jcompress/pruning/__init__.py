"""Removing weights: patterns, scores, masks, schedules and the optax transformation."""

from jcompress.pruning.convert import to_sparse as to_sparse
from jcompress.pruning.masks import apply_masks as apply_masks
from jcompress.pruning.masks import make_masks as make_masks
from jcompress.pruning.optimizer import PruneState as PruneState
from jcompress.pruning.optimizer import prune as prune
from jcompress.pruning.patterns import NM as NM
from jcompress.pruning.patterns import Block as Block
from jcompress.pruning.patterns import Channels as Channels
from jcompress.pruning.patterns import Heads as Heads
from jcompress.pruning.patterns import Layers as Layers
from jcompress.pruning.patterns import Pattern as Pattern
from jcompress.pruning.patterns import Rows as Rows
from jcompress.pruning.patterns import TransposableNM as TransposableNM
from jcompress.pruning.patterns import Unstructured as Unstructured
from jcompress.pruning.permuting import Permuted as Permuted
from jcompress.pruning.permuting import permute_inputs as permute_inputs
from jcompress.pruning.spec import Prune as Prune
from jcompress.pruning.summary import summarize as summarize

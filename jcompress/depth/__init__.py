"""Remove or merge whole blocks and layers, by how much each of them matters."""

from jcompress.depth.importance import BlockInfluence as BlockInfluence
from jcompress.depth.importance import Importance as Importance
from jcompress.depth.importance import MetricDrop as MetricDrop
from jcompress.depth.importance import OutputSimilarity as OutputSimilarity
from jcompress.depth.importance import score_blocks as score_blocks
from jcompress.depth.importance import score_layers as score_layers
from jcompress.depth.merging import merge_blocks as merge_blocks
from jcompress.depth.merging import merge_layers as merge_layers
from jcompress.depth.removing import leave_out_evenly as leave_out_evenly
from jcompress.depth.removing import remove_blocks as remove_blocks
from jcompress.depth.removing import skipped as skipped

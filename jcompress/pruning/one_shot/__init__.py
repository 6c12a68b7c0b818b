"""Removing weights in one shot, the others making up for them; from data of inputs."""

from jcompress.pruning.one_shot.base import Method as Method
from jcompress.pruning.one_shot.brain import OptimalBrainSurgeon as OptimalBrainSurgeon
from jcompress.pruning.one_shot.by_layers import prune_by_layers as prune_by_layers
from jcompress.pruning.one_shot.least_squares import LeastSquares as LeastSquares
from jcompress.pruning.one_shot.optimal_nm import OptimalNM as OptimalNM
from jcompress.pruning.one_shot.scored import Magnitude as Magnitude
from jcompress.pruning.one_shot.scored import Wanda as Wanda
from jcompress.pruning.one_shot.sparse_gpt import SparseGpt as SparseGpt
from jcompress.pruning.one_shot.spec import OneShot as OneShot
from jcompress.pruning.one_shot.spec import sparsegpt as sparsegpt
from jcompress.pruning.one_shot.spec import wanda as wanda
from jcompress.pruning.one_shot.weights import prune_weights as prune_weights

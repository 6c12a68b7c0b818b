"""How much each weight matters: the lowest scores are removed first."""

from jcompress.pruning.scores.base import TrainingScore as TrainingScore
from jcompress.pruning.scores.magnitude import score_by_magnitude as score_by_magnitude
from jcompress.pruning.scores.taylor import score_by_taylor as score_by_taylor
from jcompress.pruning.scores.wanda import score_by_wanda as score_by_wanda

"""How much each weight matters: the lowest scores are removed first.

A score is a tree like the parameters, of float32 arrays, with None where nothing is
scored. `jcompress.pruning.make_masks` ranks it, whatever made it: any function of your
own serves. `jcompress.shrinking.score_units` makes scores of whole units of it. A
`TrainingScore` is gathered by `jcompress.pruning.prune` while it trains.
"""

from jcompress.pruning.scores.activations import (
    score_by_activations as score_by_activations,
)
from jcompress.pruning.scores.activations import (
    score_by_positive_share as score_by_positive_share,
)
from jcompress.pruning.scores.base import TrainingScore as TrainingScore
from jcompress.pruning.scores.curvature import score_by_fisher as score_by_fisher
from jcompress.pruning.scores.curvature import score_by_hessian as score_by_hessian
from jcompress.pruning.scores.magnitude import score_by_magnitude as score_by_magnitude
from jcompress.pruning.scores.noise import score_at_random as score_at_random
from jcompress.pruning.scores.permutation import (
    score_by_permutation as score_by_permutation,
)
from jcompress.pruning.scores.running import average_fisher as average_fisher
from jcompress.pruning.scores.running import average_scores as average_scores
from jcompress.pruning.scores.running import movement as movement
from jcompress.pruning.scores.structure import (
    score_by_geometric_median as score_by_geometric_median,
)
from jcompress.pruning.scores.structure import (
    score_by_norm_scale as score_by_norm_scale,
)
from jcompress.pruning.scores.synflow import score_by_synflow as score_by_synflow
from jcompress.pruning.scores.taylor import score_by_grasp as score_by_grasp
from jcompress.pruning.scores.taylor import score_by_snip as score_by_snip
from jcompress.pruning.scores.taylor import score_by_taylor as score_by_taylor
from jcompress.pruning.scores.wanda import score_by_wanda as score_by_wanda

"""Several models as one: means, votes and learned combinations of what they say.

Members of one architecture are a stacked tree and run side by side (`stack`,
`ensemble`); train them with `jax.vmap` over keys, parameters and data orders. Merging
their weights into one tree is in `jcompress.merging`.
"""

from jcompress.ensembles.calibration import Diversity as Diversity
from jcompress.ensembles.calibration import calibration_error as calibration_error
from jcompress.ensembles.calibration import diversity as diversity
from jcompress.ensembles.calibration import fit_temperature as fit_temperature
from jcompress.ensembles.combining import majority_vote as majority_vote
from jcompress.ensembles.combining import mean_logits as mean_logits
from jcompress.ensembles.combining import mean_probabilities as mean_probabilities
from jcompress.ensembles.members import ensemble as ensemble
from jcompress.ensembles.members import stack as stack
from jcompress.ensembles.members import unstack as unstack
from jcompress.ensembles.rank_one import Factors as Factors
from jcompress.ensembles.rank_one import RankOne as RankOne
from jcompress.ensembles.rank_one import rank_one_members as rank_one_members
from jcompress.ensembles.rank_one import with_factors as with_factors
from jcompress.ensembles.stacking import Stacker as Stacker
from jcompress.ensembles.stacking import fit_stacker as fit_stacker
from jcompress.ensembles.stacking import folds as folds
from jcompress.ensembles.weighting import fit_weights as fit_weights
from jcompress.ensembles.weighting import weights_by_score as weights_by_score

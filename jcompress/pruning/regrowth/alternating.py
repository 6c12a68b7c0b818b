"""Dense and sparse phases in turn: AC/DC."""

import dataclasses

import jax

from jcompress.pruning.ranking import choose
from jcompress.pruning.regrowth.base import Masks, Regrowth
from jcompress.pruning.scores.base import Leaves
from jcompress.pruning.spec import PruningPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlternateDense(Regrowth):
    """Dense and sparse phases in turn, as in AC/DC, ending with a sparse one.

    Until `begin` nothing is removed. Then `sparse` steps with the sparsity that the
    rules say, of the weights that are largest when the phase begins, and `dense` steps
    with all weights, and so on; from `stop` on it is sparse.

    Attributes:
        begin: steps before the first sparse phase.
        sparse: steps of a sparse phase.
        dense: steps of a dense phase.
        stop: the step at which the last sparse phase begins.

    Raises:
        ValueError: `begin` below 0, a phase below 1 step, or a `stop` before `begin`.

    References:
        Peste et al. 2021, "AC/DC: Alternating Compressed/DeCompressed Training of Deep
        Neural Networks", algorithm 1.
    """

    begin: int
    sparse: int
    dense: int
    stop: int

    def __post_init__(self) -> None:
        if self.begin < 0 or min(self.sparse, self.dense) < 1 or self.stop < self.begin:
            raise ValueError(
                "AlternateDense: begin is at least 0, sparse and dense are at least 1, "
                f"and stop is not before begin; not {self.begin}, {self.sparse}, "
                f"{self.dense} and {self.stop}"
            )

    def check(self, plan: PruningPlan) -> None:
        """It serves every pattern."""

    def is_due(self, step: jax.Array) -> jax.Array:
        """At step 0, and where a phase begins."""
        now, before = self._is_sparse(step), self._is_sparse(step - 1)
        return (step == 0) | (now != before)

    def choose(
        self,
        plan: PruningPlan,
        scores: Leaves,
        gradients: Leaves,
        masks: Masks,
        step: jax.Array,
    ) -> Masks:
        """All in a dense phase, the largest in a sparse one."""
        largest = choose(plan, scores, step)
        dense = ~self._is_sparse(step)
        return {path: mask | dense for path, mask in largest.items()}

    def _is_sparse(self, step: jax.Array) -> jax.Array:
        into = (step - self.begin) % (self.sparse + self.dense)
        return (step >= self.begin) & ((into < self.sparse) | (step >= self.stop))


def ac_dc(*, begin: int, phase: int, steps: int) -> AlternateDense:
    """AC/DC with phases of one length and a sparse end of at least one phase.

    Args:
        begin: dense steps at first.
        phase: steps of a phase.
        steps: steps of the whole training.

    Raises:
        ValueError: there is no room for a dense and two sparse phases.
    """
    pairs = (steps - begin - phase) // (2 * phase)
    if pairs < 1:
        raise ValueError(
            f"ac_dc: a sparse, a dense and a sparse phase of {phase} steps after "
            f"{begin} do not fit into {steps} steps"
        )
    return AlternateDense(
        begin=begin, sparse=phase, dense=phase, stop=begin + 2 * phase * pairs
    )

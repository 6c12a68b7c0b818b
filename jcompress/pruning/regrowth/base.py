"""What a way of regrowing says: when masks change, and to what."""

import abc
from collections.abc import Mapping

import jax

from jcompress.pruning.scores.base import Leaves
from jcompress.pruning.spec import PruningPlan

Masks = Mapping[str, jax.Array]
"""Boolean arrays by the names of the leaves that are pruned, True for keep."""


class Regrowth(abc.ABC):
    """When and how removed weights come back; subclass it for rules of your own.

    A subclass is a frozen dataclass: it is a constant of the traced program.
    """

    @abc.abstractmethod
    def check(self, plan: PruningPlan) -> None:
        """Raise `MismatchError` if it cannot serve what the rules prune."""

    @abc.abstractmethod
    def is_due(self, step: jax.Array) -> jax.Array:
        """Whether masks change at this step, a Boolean scalar."""

    @abc.abstractmethod
    def choose(
        self,
        plan: PruningPlan,
        scores: Leaves,
        gradients: Leaves,
        masks: Masks,
        step: jax.Array,
    ) -> Masks:
        """The masks from this step on.

        Args:
            plan: the rules, resolved.
            scores: float32 scores of the weights, the least of which go.
            gradients: of the loss, also of weights that are removed now.
            masks: what is kept now.
            step: updates done so far, int32.
        """

"""Which heads, feed-forward units and layers of a sentence encoder go."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _minilm_texts import Batch, Part, embed

from jcompress.allocation import Ranking
from jcompress.depth import (
    OutputSimilarity,
    leave_out_evenly,
    remove_blocks,
    score_blocks,
    skipped,
)
from jcompress.pruning.scores import score_by_taylor
from jcompress.shrinking import (
    Cost,
    Groups,
    Plan,
    Width,
    choose,
    find_groups,
    score_units,
    shrink,
    shrunk,
    static_cost,
)
from jcompress.shrinking.choosing import resolve_widths

HEADS, WIDE = "**/query/kernel", "**/wide/kernel"


@dataclasses.dataclass(frozen=True)
class Cut:
    """What goes.

    Attributes:
        units: globs of leaves; half of the units of their groups go.
        layers: whether half of the layers go.
    """

    units: tuple[str, ...] = ()
    layers: bool = False


CUTS: Mapping[str, Cut] = {
    "half the heads": Cut(units=(HEADS,)),
    "half the feed-forward width": Cut(units=(WIDE,)),
    "half of both": Cut(units=(HEADS, WIDE)),
    "half the layers": Cut(layers=True),
    "half of all three": Cut(units=(HEADS, WIDE), layers=True),
}


class Model:
    """A sentence encoder and its tree.

    Args:
        states: tree, tokens and mask to embeddings [B, C] and hidden states [B, T, C].
        tree: its variables.
        blocks: names of the layers.
        compiled: gives the embeddings alone; made if it is not at hand.
    """

    def __init__(
        self,
        states: Callable[..., Any],
        tree: Any,
        blocks: Sequence[str],
        compiled: Callable[..., jax.Array] | None = None,
    ) -> None:
        self.states, self.tree, self.blocks = states, tree, tuple(blocks)
        self._compiled = jax.jit(self.vectors) if compiled is None else compiled

    def vectors(self, *args: Any) -> jax.Array:
        """Tree, tokens and mask to embeddings."""
        found: jax.Array = self.states(*args)[0]
        return found

    def run(self, *batch: np.ndarray) -> np.ndarray:
        """Tokens and mask to embeddings, compiled."""
        return np.asarray(self._compiled(self.tree, *batch))

    def holding(self, tree: Any) -> "Model":
        """The model with other numbers in its arrays."""
        return Model(self.states, tree, self.blocks, self._compiled)

    def without(self, gone: Sequence[str]) -> "Model":
        """The model without some layers."""
        tree, states = remove_blocks(self.tree, gone), skipped(self.states, gone)
        return Model(states, tree, [name for name in self.blocks if name not in gone])

    def narrowed(self, plan: Plan) -> "Model":
        """The model with the units of a plan."""
        return Model(shrunk(self.states, plan), shrink(self.tree, plan), self.blocks)


class Cutter:
    """Chooses what goes: by scores on some texts, between ways to choose by others.

    Args:
        model: the dense model.
        scored: batches that the scores are made on.
        judged: texts that tell which of two choices is nearer to the dense model.
        multiple: feed-forward widths stay multiples of this.
    """

    def __init__(
        self, model: Model, scored: Sequence[Batch], judged: Part, multiple: int = 32
    ) -> None:
        self._model, self._scored, self._multiple = model, scored, multiple
        self._judged, self._wanted = judged, embed(model.run, judged)
        self._known: dict[tuple[str, ...], Any] = {}

    def __call__(self, cut: Cut) -> Model:
        """The model with what is left, before recovery; says how that was chosen."""
        found = self._nearest(self._shallower) if cut.layers else self._model
        return self._nearest(self._narrower(cut, found)) if cut.units else found

    def nearness(self, model: Model) -> float:
        """Mean cosine with the dense model's embeddings, on the texts to judge by."""
        return cosine(embed(model.run, self._judged), self._wanted)

    def _nearest(self, choices: Mapping[str, Model]) -> Model:
        found = {name: self.nearness(one) for name, one in choices.items()}
        told = ", ".join(f"{name} {near:.3f}" for name, near in found.items())
        print(f"validation cosine before recovery: {told}", file=sys.stderr, flush=True)
        return choices[max(found, key=lambda name: found[name])]

    @functools.cached_property
    def _shallower(self) -> dict[str, Model]:
        """Half of the layers, chosen in two ways."""
        model = self._model
        spaced = leave_out_evenly(model.blocks, keep=len(model.blocks) // 2)
        scores = self._layer_scores()
        least = sorted(model.blocks, key=lambda block: scores[block])[: len(spaced)]
        found = [model.without(gone) for gone in (spaced, least)]
        return {f"layers {_numbers(one.blocks)}": one for one in found}

    def _layer_scores(self) -> Mapping[str, float]:
        model = self._model
        batch = self._scored[len(self._scored) // 2]
        return score_blocks(
            model.vectors,
            model.tree,
            *batch,
            blocks=model.blocks,
            by=OutputSimilarity(),
        )

    def _narrower(self, cut: Cut, model: Model) -> dict[str, Model]:
        """Half of the multiplications of the units' products are left.

        In every layer the same, or wherever units matter.
        """
        groups, scores = self._unit_scores(model)
        rules = [(glob, Width(multiple=self._multiple_of(glob))) for glob in cut.units]
        half = {n: range(groups[n].size // 2) for n in resolve_widths(groups, rules)}
        count = static_cost(groups, Cost.MULTIPLICATIONS)
        target = count(groups.keep(half)) / count(None) + 1e-6
        options: Any = {"target": target, "cost": Cost.MULTIPLICATIONS}
        return {
            ranking.value: model.narrowed(
                choose(groups, scores, rules, ranking=ranking, **options)
            )
            for ranking in (Ranking.UNIFORM, Ranking.ISOMORPHIC)
        }

    def _multiple_of(self, glob: str) -> int:
        return self._multiple if glob == WIDE else 1

    def _unit_scores(self, model: Model) -> tuple[Groups, dict[str, np.ndarray]]:
        if model.blocks not in self._known:
            # In the whole tree: an array that is not there could not be scored.
            whole = model.holding(self._model.tree)
            groups = find_groups(whole.vectors, whole.tree, *self._scored[-1])
            found = groups, importance(whole, groups, self._scored)
            self._known[model.blocks] = found
        known: tuple[Groups, dict[str, np.ndarray]] = self._known[model.blocks]
        return known


def importance(
    model: Model, groups: Groups, given: Sequence[Batch]
) -> dict[str, np.ndarray]:
    """How far the embeddings move, to first order, when a unit goes: squared, summed.

    A loss against the model's own embeddings has no slope at the model. The slope of
    the sum of their entries with random signs, squared, has as its mean over the signs
    the sum of the squared slopes of the entries.
    """

    @jax.jit
    def slopes(tree: Any, signs: Any, *batch: Any) -> Any:
        return jax.grad(lambda t: jnp.sum(signs * model.vectors(t, *batch)))(tree)

    random = np.random.default_rng(0)
    total = {group.name: np.zeros(group.size) for group in groups}
    for batch in given:
        shape = jax.eval_shape(model.vectors, model.tree, *batch).shape
        signs = random.choice(np.array([-1, 1], np.float32), shape)
        found = score_by_taylor(model.tree, slopes(model.tree, signs, *batch))
        for name, scores in score_units(groups, found).items():
            total[name] += scores**2
    return total


def cosine(vectors: np.ndarray, wanted: np.ndarray) -> float:
    """Mean cosine of embeddings, all of length 1."""
    return float(np.mean(np.sum(vectors * wanted, axis=-1)))


def _numbers(blocks: Sequence[str]) -> str:
    return ", ".join(block.rpartition("/")[2] for block in blocks)

"""Sensitivity by running the model, one leaf at a time in one form at a time."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.conversion import replace_leaves
from jcompress.sensitivity.trials import Measure, Trial
from jcompress.sites import Sites


def squared_error(wanted: Any, got: Any) -> jax.Array:
    """The mean squared difference of all floats that two trees of outputs hold."""
    pairs = [
        (jnp.asarray(a), jnp.asarray(b))
        for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True)
    ]
    floats = [(a, b) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.floating)]
    total = sum(
        (jnp.sum(jnp.square((a - b).astype(jnp.float32))) for a, b in floats),
        start=jnp.zeros(()),
    )
    return total / max(1, sum(a.size for a, _ in floats))


def relative_error(wanted: Any, got: Any) -> jax.Array:
    """`squared_error`, over the mean square of what is wanted."""
    zeros = jax.tree.map(jnp.zeros_like, wanted)
    whole = squared_error(wanted, zeros)
    return squared_error(wanted, got) / jnp.where(whole > 0, whole, 1)


def kl_divergence(wanted: jax.Array, got: jax.Array) -> jax.Array:
    """The mean of KL(softmax(wanted) || softmax(got)) of logits [..., C], in nats."""
    first, second = (
        jax.nn.log_softmax(x.astype(jnp.float32), axis=-1) for x in (wanted, got)
    )
    # A class of probability 0 counts for nothing.
    share = jnp.exp(first)
    terms = jnp.where(share > 0, share * (first - second), 0)
    return jnp.mean(jnp.sum(terms, axis=-1))


@dataclasses.dataclass(frozen=True)
class OutputError(Measure):
    """How far the outputs go from those of the float model.

    The model is compiled once, whatever the number of leaves and forms: a leaf in any
    form, and one with fewer units, is an ordinary array of the same shape. A pass over
    the batches for each. Rounding of data (`Quantize(activation=...)`) is left out.

    Take outputs whose error grows with that of the weights. Those of a decoder that
    reads what it said itself do not: after one other word all that follows differs, as
    much with 3 bits as with 2. Let `fn` read what the float model said, and make equal
    what comes after its end: the errors of leaves then add up.

    Attributes:
        fn: the function of the tree, such as `model.apply`.
        batches: its further arguments, one tuple for each batch, of the same shapes.
        divergence: takes the outputs of the float model and the others, and gives a
            number: `squared_error`, `kl_divergence` or one of your own.

    Raises:
        ValueError: there is no batch.
    """

    fn: Callable[..., Any]
    batches: Sequence[tuple[Any, ...]]
    divergence: Callable[[Any, Any], jax.Array] = squared_error

    def __post_init__(self) -> None:
        if not self.batches:
            raise ValueError(
                "OutputError: batches is empty; give at least one tuple of the "
                "arguments that the function takes after the tree"
            )

    @functools.cached_property
    def _run(self) -> Callable[..., Any]:
        return jax.jit(self.fn)

    @functools.cached_property
    def _score(self) -> Callable[..., jax.Array]:
        def score(params: Any, wanted: Any, *batch: Any) -> jax.Array:
            return self.divergence(wanted, self.fn(params, *batch))

        return jax.jit(score)

    def _outputs(self, params: Any) -> list[Any]:
        return [self._run(params, *batch) for batch in self.batches]

    def _mean(self, tree: Any, wanted: list[Any]) -> float:
        pairs = zip(wanted, self.batches, strict=True)
        scores = [self._score(tree, outputs, *batch) for outputs, batch in pairs]
        return sum(map(float, scores)) / len(scores)

    @property
    def name(self) -> str:
        """The outputs and how they are compared."""
        how = getattr(self.divergence, "__name__", type(self.divergence).__name__)
        return f"outputs, {how}"

    def each(
        self, params: Any, trials: Iterator[Trial], sites: Sites
    ) -> Iterator[float]:
        """The mean over the batches, for each trial."""
        wanted = self._outputs(params)
        for trial in trials:
            yield self._mean(replace_leaves(params, trial.changed), wanted)

    def together(self, params: Any, changed: Mapping[str, jax.Array]) -> float:
        """The mean over the batches, all of the leaves being changed."""
        wanted = self._outputs(params)
        return self._mean(replace_leaves(params, changed), wanted)

"""A learned combiner of an ensemble's outputs: stacking."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jcompress.ensembles._checks import as_members, check_labels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Stacker:
    """From the logits of all members to one's: linear, or with a small network added.

    With z the members' log-probabilities, [E C] in a row,

        z @ weights + bias + tanh(z @ inner + inner_bias) @ outer

    Attributes:
        weights: float32 [E C, C].
        bias: float32 [C].
        inner: float32 [E C, H]; H is 0 for a linear one.
        inner_bias: float32 [H].
        outer: float32 [H, C].
    """

    weights: jax.Array
    bias: jax.Array
    inner: jax.Array
    inner_bias: jax.Array
    outer: jax.Array

    def __call__(self, logits: jax.Array) -> jax.Array:
        """Logits float32 [..., C] from those of the members, [E, ..., C].

        Raises:
            TypeError: logits that are not floating point.
            ValueError: they are of another number of members or classes.
        """
        row = _in_a_row(as_members("Stacker", logits))
        if row.shape[-1] != len(self.weights):
            raise ValueError(
                f"Stacker: logits have shape {jnp.shape(logits)}; it was fitted to "
                f"{len(self.weights) // len(self.bias)} members of {len(self.bias)} "
                "classes"
            )
        return _combined(self, row)


def _combined(stacker: Stacker, row: jax.Array) -> jax.Array:
    def wide(bias: jax.Array) -> jax.Array:
        return bias.reshape(*(1,) * (row.ndim - 1), bias.size)

    hidden = jnp.tanh(row @ stacker.inner + wide(stacker.inner_bias))
    return row @ stacker.weights + wide(stacker.bias) + hidden @ stacker.outer


def _in_a_row(logits: jax.Array) -> jax.Array:
    """[E, ..., C] -> log-probabilities [..., E C], those below -30 counted as -30."""
    log = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    last = jnp.moveaxis(jnp.maximum(log, np.float32(-30)), 0, -2)
    return last.reshape(*last.shape[:-2], -1)


def fit_stacker(
    logits: jax.Array,
    labels: jax.Array,
    *,
    hidden: int = 0,
    decay: float = 1e-2,
    steps: int = 100,
    key: jax.Array | None = None,
) -> Stacker:
    """Fit a combiner to predictions for examples that the members have not seen.

    It starts as the mean of the members' log-probabilities, and what it moves away
    from that costs `decay` times the squares; so with few examples it stays close to
    the mean. Minimised by L-BFGS on all examples at once.

    For members that were each trained on all data but one fold, give the predictions
    for that fold (see `folds`), so that no example is lost to them.

    Args:
        logits: [E, B, C] of E members.
        labels: integers [B].
        hidden: the width of a small network that is added; 0 for a linear combiner.
        decay: the cost of the squared distance from the mean, per example.
        steps: of L-BFGS.
        key: for the small network's first weights; needed if `hidden` is not 0.

    Returns:
        The combiner: a pytree, and a function that `ensemble` takes as `combine`.

    Raises:
        TypeError: logits that are not floating point, labels that are not integers.
        ValueError: shapes that do not fit, labels that name no class, a number out of
            range, a key that is missing.

    References:
        Wolpert 1992, "Stacked Generalization", section 2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.ensembles import fit_stacker
        >>> right = jnp.array([[4.0, 0.0], [0.0, 4.0]] * 8)
        >>> logits = jnp.stack([right, -right])
        >>> stacker = fit_stacker(logits, jnp.array([0, 1] * 8))
        >>> jnp.argmax(stacker(logits)[:2], axis=-1).tolist()
        [0, 1]
    """
    wide = as_members("fit_stacker", logits)
    if wide.ndim != 3:
        raise ValueError(
            f"fit_stacker: logits have shape {wide.shape}, not [members, examples, "
            "classes]"
        )
    labels = check_labels("fit_stacker", labels, wide)
    for name, number, least in (("hidden", hidden, 0), ("steps", steps, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(
                f"fit_stacker: {name} is an int from {least} on: {number!r}"
            )
    if not np.isfinite(decay) or decay < 0:
        raise ValueError(f"fit_stacker: decay is 0 or more, not {decay!r}")
    if hidden and key is None:
        raise ValueError("fit_stacker: a hidden layer starts at random; give a key")
    members, _, classes = wide.shape
    inputs = members * classes
    first = jnp.zeros((inputs, 0))
    if hidden:
        assert key is not None
        first = jax.random.normal(key, (inputs, hidden)) / np.float32(inputs**0.5)
    start = Stacker(
        weights=jnp.tile(jnp.eye(classes) / np.float32(members), (members, 1)),
        bias=jnp.zeros(classes),
        inner=first,
        inner_bias=jnp.zeros(hidden),
        outer=jnp.zeros((hidden, classes)),
    )
    return _fit(start, _in_a_row(wide), labels, np.float32(decay), steps)


def _fit(
    start: Stacker, row: jax.Array, labels: jax.Array, decay: Any, steps: int
) -> Stacker:
    def loss(stacker: Stacker) -> jax.Array:
        out = _combined(stacker, row)
        likely = optax.softmax_cross_entropy_with_integer_labels(out, labels)
        moved = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), stacker, start)
        total: jax.Array = sum(jax.tree.leaves(moved), jnp.zeros(()))
        cost: jax.Array = jnp.mean(likely) + decay * total
        return cost

    solver = optax.lbfgs()
    slope = optax.value_and_grad_from_state(loss)

    def step(_: int, carry: tuple[Stacker, Any]) -> tuple[Stacker, Any]:
        stacker, state = carry
        value, grad = slope(stacker, state=state)
        updates, state = solver.update(
            grad, state, stacker, value=value, grad=grad, value_fn=loss
        )
        return optax.apply_updates(stacker, updates), state

    fitted: Stacker
    fitted, _ = jax.lax.fori_loop(0, steps, step, (start, solver.init(start)))
    return fitted


def folds(examples: int, number: int, *, key: jax.Array) -> list[jax.Array]:
    """Split examples at random into folds of nearly equal size.

    Member i is trained on all folds but fold i and predicts fold i; the predictions
    together are of examples that their member has not seen.

    Args:
        examples: how many there are.
        number: of folds, 2 to `examples`.
        key: says which example falls where.

    Returns:
        For each fold the numbers of its examples, int32, ascending.

    Raises:
        ValueError: there are fewer examples than folds, or fewer than 2 folds.
    """
    if not 2 <= number <= examples:
        raise ValueError(f"folds: {examples} examples do not make {number} folds")
    order = jax.random.permutation(key, examples)
    parts = jnp.array_split(order, number)
    return [jnp.sort(part).astype(jnp.int32) for part in parts]

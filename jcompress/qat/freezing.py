"""Training mode until the statistics are frozen, then the function that is served."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves, path_name


def freeze_statistics(
    train: Callable[..., Any],
    evaluate: Callable[..., Any],
    *,
    frozen: bool | jax.Array,
) -> Callable[..., Any]:
    """Train with the statistics of batches first, with the running ones later.

    While it normalizes with the statistics of a batch, a quantized network is not yet
    the one that is served: its numbers change with the batch. In the last part of a
    training the running means and variances are frozen and used, so that the rest
    learns what they are.

    Both functions may be transformed: `fake_quant(train, rules, folds=folds)` and
    `fake_quant(evaluate, rules, folds=folds)`.

    Args:
        train: gives `(outputs, updates)`, where `updates` is a tree of leaves of the
            tree with the same names: `functools.partial(model.apply, train=True,
            mutable=["batch_stats"])` of a Linen model.
        evaluate: gives `outputs`, of the same shapes and dtypes.
        frozen: bool, may be traced, such as `step >= 1000`.

    Returns:
        A function with the arguments and results of `train`. Where `frozen`, the
        outputs are those of `evaluate`, and the updates are the leaves as they are.
        Called, it raises MismatchError if `train` gives no such pair, or the outputs
        differ in shape or dtype.

    References:
        Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient
        inference: A whitepaper", section 3.2.2: "freeze".

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.qat import freeze_statistics
        >>> def train(p, x):
        ...     return x - x.mean(), {"mean": 0.9 * p["mean"] + 0.1 * x.mean()}
        >>> def evaluate(p, x):
        ...     return x - p["mean"]
        >>> late = freeze_statistics(train, evaluate, frozen=True)
        >>> late({"mean": jnp.array(1.0)}, jnp.array([2.0, 4.0]))[1]
        {'mean': Array(1., dtype=float32)}
    """

    @functools.wraps(train)
    def run(variables: Any, *args: Any, **kwargs: Any) -> Any:
        shapes = jax.eval_shape(lambda: train(variables, *args, **kwargs))
        if not isinstance(shapes, tuple) or len(shapes) != 2:
            raise MismatchError(
                "freeze_statistics: train gives (outputs, updates), such as "
                "model.apply(..., mutable=['batch_stats']), not "
                f"{type(shapes).__name__}"
            )
        outputs, updates = shapes
        kept = dict(named_leaves(variables))
        for name, leaf in named_leaves(updates):
            if name not in kept or jnp.shape(kept[name]) != leaf.shape:
                raise MismatchError(
                    f"freeze_statistics: train updates {name!r} {list(leaf.shape)}, "
                    f"and the tree has no such leaf: {', '.join(kept)}"
                )
        found = jax.eval_shape(lambda: evaluate(variables, *args, **kwargs))
        form = jax.tree.map(lambda x: (x.shape, x.dtype), (outputs, found))
        if form[0] != form[1]:
            raise MismatchError(
                f"freeze_statistics: train gives {form[0]} and evaluate {form[1]}; "
                "both must give the same outputs"
            )
        old = jax.tree_util.tree_map_with_path(
            lambda path, _: jnp.asarray(kept[path_name(path)]), updates
        )
        return jax.lax.cond(
            jnp.asarray(frozen, jnp.bool_),
            lambda: (evaluate(variables, *args, **kwargs), old),
            lambda: train(variables, *args, **kwargs),
        )

    return run

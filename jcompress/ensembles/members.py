"""Several trees of parameters as one, and a function that runs them all."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.ensembles.combining import mean_probabilities
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves


def stack(members: Sequence[Any]) -> Any:
    """Trees of parameters of one structure as one tree, with the members in front.

    Compressed leaves are stacked as they are stored. Such a tree is for `ensemble` and
    `jax.vmap` only; save the members as a tuple of trees.

    Args:
        members: trees of the same structure, shapes and dtypes.

    Returns:
        The tree with leaves [E, ...].

    Raises:
        MismatchError: there is no tree, or two differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.ensembles import stack
        >>> stack([{"w": jnp.ones(3)}, {"w": jnp.zeros(3)}])["w"].shape
        (2, 3)
    """
    members = list(members)
    if not members:
        raise MismatchError("stack: there are no members")
    first = members[0]
    for number, other in enumerate(members[1:], 1):
        _check_alike(first, other, number)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def _check_alike(first: Any, other: Any, number: int) -> None:
    ours, theirs = dict(named_leaves(first)), dict(named_leaves(other))
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs:
            raise MismatchError(
                f"stack: {name!r} is in member {0 if name in ours else number} and not "
                f"in member {number if name in ours else 0}; members of other "
                "structures run as ensemble([fn, other_fn]) with a tuple of trees"
            )
    kinds: list[Any] = [jax.tree.structure(tree) for tree in (first, other)]
    if kinds[0] != kinds[1]:
        raise MismatchError(
            f"stack: member {number} is of another structure than member 0, with "
            "leaves of the same names: other containers, or compressed leaves of other "
            "formats or shapes; run them as ensemble([fn] * members)"
        )
    for name, leaf in ours.items():
        for a, b in zip(
            jax.tree.leaves(leaf), jax.tree.leaves(theirs[name]), strict=True
        ):
            known = [(jnp.shape(x), jnp.result_type(x)) for x in (a, b)]
            if known[0] != known[1]:
                raise MismatchError(
                    f"stack: {name!r} is {known[0][1]} {list(known[0][0])} in member 0 "
                    f"and {known[1][1]} {list(known[1][0])} in member {number}"
                )


def unstack(stacked: Any) -> list[Any]:
    """The trees that `stack` or `jax.vmap` of an initialiser put together.

    Raises:
        MismatchError: leaves are led by axes of different lengths, or by none.
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(stacked)}
    if len(lengths) != 1 or lengths == {()}:
        raise MismatchError(
            "unstack: the leaves of a stacked tree are led by one axis of one length, "
            f"the members; found {sorted(lengths)}"
        )
    ((count,),) = lengths
    return [jax.tree.map(lambda leaf, e=e: leaf[e], stacked) for e in range(count)]


def ensemble(
    fn: Callable[..., Any] | Sequence[Callable[..., Any]],
    combine: Callable[[jax.Array], Any] | None = mean_probabilities,
) -> Callable[..., Any]:
    """A function that runs all members on its data and combines what they return.

    With one function the members are a stacked tree and run side by side, as one
    program of `jax.vmap`. With a list of functions, which may be of other
    architectures, compressed or the same one several times, they are a tuple of trees,
    and run one after the other within one program.

    Args:
        fn: `fn(params, *data)`, or one for each member. It returns logits [..., C], or
            anything else of one shape for all, if `combine` is None or takes it.
        combine: from outputs [E, ...] to one: `mean_probabilities`, `mean_logits`,
            `majority_vote`, a `functools.partial` of these with weights, or a function
            of yours. None returns the outputs [E, ...].

    Returns:
        `run(params, *data)` with the parameters of all members.

    Raises:
        TypeError: `fn` is neither a function nor a list of them.
        MismatchError: there is no function; called, there is not one tree for each
            function, or members return other shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.ensembles import ensemble
        >>> model = lambda params, x: x @ params["w"]
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> stacked = jax.vmap(lambda k: {"w": jax.random.normal(k, (3, 2))})(keys)
        >>> ensemble(model)(stacked, jnp.ones((5, 3))).shape
        (5, 2)
    """
    if callable(fn):
        one = fn

        @functools.wraps(one)
        def side_by_side(params: Any, *data: Any, **given: Any) -> Any:
            outputs = jax.vmap(lambda member: one(member, *data, **given))(params)
            return outputs if combine is None else combine(outputs)

        return side_by_side
    if not isinstance(fn, Sequence) or not all(map(callable, fn)):
        raise TypeError(
            f"ensemble: fn is a function or a list of functions, not {fn!r}"
        )
    functions = list(fn)
    if not functions:
        raise MismatchError("ensemble: there is no function")

    def in_turn(params: Sequence[Any], *data: Any, **given: Any) -> Any:
        if not isinstance(params, tuple | list) or len(params) != len(functions):
            found = len(params) if isinstance(params, tuple | list) else "no"
            raise MismatchError(
                f"ensemble: there are {len(functions)} functions and {found} trees; "
                "give a tuple with the tree of each"
            )
        outputs = [
            one(member, *data, **given)
            for one, member in zip(functions, params, strict=True)
        ]
        shapes = [jax.tree.map(jnp.shape, output) for output in outputs]
        for number, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise MismatchError(
                    f"ensemble: member 0 returns {shapes[0]}, and member {number} "
                    f"{shape}"
                )
        stacked = jax.tree.map(lambda *parts: jnp.stack(_promoted(parts)), *outputs)
        return stacked if combine is None else combine(stacked)

    return in_turn


def _promoted(parts: Sequence[Any]) -> list[jax.Array]:
    """Outputs of several float dtypes in float32, or in float64 if one is."""
    kinds = {jnp.dtype(jnp.result_type(part)) for part in parts}
    if len(kinds) == 1:
        return [jnp.asarray(part) for part in parts]
    wide = jnp.float64 if np.dtype(np.float64) in kinds else jnp.float32
    return [jnp.asarray(part).astype(wide) for part in parts]

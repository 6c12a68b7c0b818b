"""`tap`: values from inside a function."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from jcompress.errors import MismatchError
from jcompress.rules import matches_name
from jcompress.statistics.kinds import Sums
from jcompress.statistics.scopes import Room, rooms, scopes
from jcompress.statistics.watching import Watch, watch
from jcompress.tracing.trace import Traced, trace

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Values = tuple[dict[str, Any], ...]


class _Apart(Sums):
    """The values of all devices beside each other; those not computed are zeros."""

    def across(self, value: Any, axis_names: tuple[str, ...]) -> Any:
        """A leading axis for the devices."""
        count = math.prod(jax.lax.axis_size(name) for name in axis_names)
        number = jax.lax.axis_index(axis_names)

        def one(x: jax.Array) -> jax.Array:
            wide = jnp.zeros((count, *x.shape), x.dtype).at[number].set(x)
            truth = x.dtype == jnp.bool_
            numbers = wide.astype(jnp.int32) if truth else wide
            # One device has the value, the others zeros.
            summed: jax.Array = jax.lax.psum(numbers, axis_names)
            return summed > 0 if truth else summed

        return jax.tree.map(one, value)


@dataclasses.dataclass(frozen=True)
class Input:
    """What meets a leaf in its products and lookups.

    Attributes:
        leaf: a glob of leaves' names, `"params/*/kernel"`.
    """

    leaf: str


@dataclasses.dataclass(frozen=True)
class Output:
    """The results of the operations in which a leaf meets data.

    Of a kernel that is the product without bias, of a bias the sum.

    Attributes:
        leaf: a glob of leaves' names, `"params/*/bias"`.
    """

    leaf: str


@dataclasses.dataclass(frozen=True)
class NamedScope:
    """What a scope returns: of a module, or of `with jax.named_scope(...)`.

    Modules of Linen, Haiku and Equinox open scopes, those of NNX do not: their values
    are found by `Input` and `Output`.

    Attributes:
        name: a glob of scopes' names, `"Encoder/layer_*"`. A Linen model's begin with
            the name of its class.
    """

    name: str


def tap(
    fn: Callable[Arguments, Result], places: Sequence[Input | Output | NamedScope]
) -> Callable[Arguments, tuple[Result, Values]]:
    """Make a function also return values from inside of it, such as hidden features.

    Nothing in the function need be changed: what Flax's `sow` does for those who write
    a model, this does for those who only have it.

    Args:
        fn: any function of a parameter tree, such as `model.apply`. To look into a
            compressed model, compress the tapped one: `compressed(tap(fn, places))`.
        places: where the values are.

    Returns:
        A function with the arguments of `fn`; it gives `(result, values)`, the latter a
        dictionary for each place, from the names of what matched to their values. A
        scope that returns several arrays has a tuple of them, in the order of
        execution. The second use of a leaf, or call of a scope, is named `name#2`, and
        so on; calls of one scope that nothing separates are one. Values in a `scan`
        have a leading axis for its steps, those in a `shard_map` one for the devices
        between which they differ (for all with `check_vma=False`); in a branch of
        `cond` that was not taken they are zeros. It jits and vmaps like `fn`, and
        gradients flow through the values. Called, it raises MismatchError if a place
        matches nothing that can be handed out, and lists what there is.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.statistics import Input, NamedScope, tap
        >>> def model(params, x):
        ...     with jax.named_scope("hidden"):
        ...         x = jnp.tanh(x @ params["a"])
        ...     return x @ params["b"]
        >>> params = {"a": jnp.zeros((2, 3)), "b": jnp.ones((3, 1))}
        >>> tapped = tap(model, [NamedScope("hidden"), Input("*")])
        >>> _, (scopes, inputs) = tapped(params, jnp.ones((1, 2)))
        >>> scopes["hidden"], inputs["a"]
        (Array([[0., 0., 0.]], dtype=float32), Array([[1., 1.]], dtype=float32))
    """
    _check(places)

    @functools.wraps(fn)
    def tapped(
        *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> tuple[Result, Values]:
        variables, *rest = args
        traced = trace(fn, variables, tuple(rest), kwargs)
        every = list(rooms(traced.body))
        found = [_found(place, traced, every) for place in places]
        watches = [one for each in found for one in each.values()]
        outs, made = watch(traced, watches, _Apart(), traced.leaves, traced.data)
        values = iter(made)
        return traced.rebuild(outs), tuple(
            {name: next(values) for name in each} for each in found
        )

    return tapped


def _check(places: Any) -> None:
    if isinstance(places, Input | Output | NamedScope):
        raise TypeError(f"tap: places are a list of places; write [{places!r}]")
    if not places:
        raise MismatchError("tap: there are no places, so there is nothing to return")
    for place in places:
        if not isinstance(place, Input | Output | NamedScope):
            raise TypeError(
                f"tap: a place is Input(leaf), Output(leaf) or NamedScope(name), not "
                f"{place!r}"
            )


def _found(
    place: Input | Output | NamedScope, traced: Traced, every: Sequence[Room]
) -> dict[str, Watch]:
    """What a place matches, by name."""
    pattern = place.name if isinstance(place, NamedScope) else place.leaf
    if isinstance(place, NamedScope):
        candidates = list(_scopes(every))
    else:
        candidates = list(_uses(place, traced, every))
    found: dict[str, Watch] = {}
    hidden = ""
    for name, room, atoms in candidates:
        if not matches_name(pattern, name):
            continue
        if room.hidden:
            hidden = hidden or f"{name!r} is {room.hidden}"
            continue
        number = sum(key.split("#")[0] == name for key in found)
        numbered = f"{name}#{number + 1}" if number else name
        found[numbered] = Watch(
            place=room.place,
            atoms=atoms,
            made=lambda values: values[0] if len(values) == 1 else tuple(values),
            stacked=room.stacked,
        )
    if found:
        return found
    if hidden:
        raise MismatchError(f"tap: {place!r}: {hidden}, so it cannot be handed out")
    names = list(dict.fromkeys(name for name, _, _ in candidates))
    what = "scopes" if isinstance(place, NamedScope) else "leaves with such values"
    hint = ""
    if any(matches_name(f"**/{pattern}", name) for name in names):
        hint = f"; '**/{pattern}' finds what is below another"
    elif near := difflib.get_close_matches(pattern, names, n=1):
        hint = f"; the nearest is {near[0]!r}"
    raise MismatchError(
        f"tap: {place!r} matches nothing; the {what} are "
        + (", ".join(names) if names else "none")
        + hint
    )


def _scopes(every: Sequence[Room]) -> Iterator[tuple[str, Room, tuple[Any, ...]]]:
    for room in every:
        for name, leaving in scopes(room):
            yield name, room, leaving


def _uses(
    place: Input | Output, traced: Traced, every: Sequence[Room]
) -> Iterator[tuple[str, Room, tuple[Any, ...]]]:
    by_place = {room.place: room for room in every}
    for site in traced.sites:
        room = by_place.get(site.location[:-1])
        use = traced.uses[site.location]
        if room is None:
            continue  # inside of a function with a custom gradient
        if isinstance(place, Output):
            yield site.path, room, (use.eqn.outvars[0],)
        elif use.data is not None:
            yield site.path, room, (use.eqn.invars[use.data],)

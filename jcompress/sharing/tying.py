"""Tying: one array serves several blocks, or several layers of a stacked leaf."""

import dataclasses
import enum
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves, path_name
from jcompress.tensors import is_compressed


class Initial(enum.Enum):
    """The value with which a tied array begins."""

    MEAN = "mean"
    """The mean of the arrays that it replaces, taken in float32."""
    FIRST = "first"
    """The first of them."""

    def __repr__(self) -> str:
        return f"Initial.{self.name}"


@dataclasses.dataclass(frozen=True)
class TieBlocks:
    """Several subtrees, or leaves, with the same arrays.

    Attributes:
        blocks: the names of two or more subtrees with leaves of the same names and
            shapes, `("params/Block_0", "params/Block_3")`, or of leaves of one shape.
            The arrays of the first remain.

    Raises:
        TypeError: `blocks` is not a sequence of names.
        MismatchError: there are fewer than two, or one is there twice.
    """

    blocks: tuple[str, ...]

    def __post_init__(self) -> None:
        given: Any = self.blocks
        if isinstance(given, str) or not all(isinstance(name, str) for name in given):
            raise TypeError(
                f"TieBlocks: blocks is {self.blocks!r}; give names of subtrees, "
                'TieBlocks(("params/Block_0", "params/Block_1"))'
            )
        names = tuple(name.strip("/") for name in self.blocks)
        object.__setattr__(self, "blocks", names)
        if len(set(names)) != len(names) or len(names) < 2:
            raise MismatchError(
                f"TieBlocks: {names} are not two or more different blocks"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TieLayers:
    """Layers of stacked leaves, as a `scan` over layers has them, with the same arrays.

    Attributes:
        below: the name of a subtree all of whose leaves are stacks of layers, or of
            one such leaf.
        groups: for each layer the number of the array that it uses, 0, 1, ... without
            a gap: `(0, 0, 1, 1)` shares neighbours, `(0, 1, 0, 1)` repeats a cycle.
        axis: which axis numbers the layers.

    Raises:
        MismatchError: the numbers have a gap, or no two layers share one.
    """

    below: str
    groups: tuple[int, ...]
    axis: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "below", self.below.strip("/"))
        object.__setattr__(self, "groups", tuple(int(n) for n in self.groups))
        count = len(set(self.groups))
        if sorted(set(self.groups)) != list(range(count)):
            raise MismatchError(
                f"TieLayers: groups {self.groups} of {self.below} are not numbered "
                "0, 1, ... without a gap"
            )
        if count == len(self.groups):
            raise MismatchError(
                f"TieLayers: no two layers of {self.below} share an array in groups "
                f"{self.groups}"
            )


Tie = TieBlocks | TieLayers


def tie(params: Any, ties: Sequence[Tie], *, initial: Initial = Initial.MEAN) -> Any:
    """Keep one array where several blocks or layers are to share it.

    Run the function with `tied(fn, ties)`: the gradient of a tied array is the sum of
    the gradients of the arrays it replaces. Every leaf of the result is a plain array,
    so that optimizers and checkpoints know nothing of the ties; a leaf that another
    one serves is None.

    Args:
        params: the parameters, with dense arrays where something is tied.
        ties: what is tied; no leaf may be in two of them.
        initial: what a tied array begins with.

    Returns:
        A smaller tree of the same structure but for the leaves that are None.

    Raises:
        TypeError: `ties` is no sequence of `TieBlocks` and `TieLayers`.
        MismatchError: there is no tie; a name is of no leaf or subtree; the leaves of
            blocks differ in names, shapes or dtypes; a leaf has not as many layers as
            `groups`; a leaf is in two ties, or is no array of floats.

    References:
        Dehghani et al. 2019, "Universal Transformers"; Lan et al. 2020, "ALBERT",
        section 3.1 (cross-layer parameter sharing).

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.sharing.tying import TieBlocks, tie, tied
        >>> def model(params, x):
        ...     return (x @ params["a"]["w"]) @ params["b"]["w"]
        >>> params = {"a": {"w": jnp.eye(2)}, "b": {"w": 3 * jnp.eye(2)}}
        >>> ties = [TieBlocks(("a", "b"))]
        >>> small = tie(params, ties)
        >>> small["b"]["w"] is None
        True
        >>> tied(model, ties)(small, jnp.ones((1, 2)))
        Array([[4., 4.]], dtype=float32)
    """
    leaves = dict(named_leaves(params))
    plan = _plan("tie", ties, leaves)
    made: dict[str, Any] = dict.fromkeys(plan.source)
    for path in (*plan.source, *plan.source.values(), *plan.layers):
        _check_array(path, leaves[path])
    for first in dict.fromkeys(plan.source.values()):
        users = [first, *(path for path, own in plan.source.items() if own == first)]
        _check_same(users, leaves)
        made[first] = _merged([leaves[path] for path in users], initial)
    for path, spec in plan.layers.items():
        leaf = jnp.asarray(leaves[path])
        _check_layers(path, leaf.shape, spec, len(spec.groups))
        layers = [jnp.take(leaf, n, spec.axis) for n in range(len(spec.groups))]
        shared = [
            _merged([x for x, g in zip(layers, spec.groups, strict=True) if g == n],
                    initial)
            for n in range(max(spec.groups) + 1)
        ]  # fmt: skip
        made[path] = jnp.stack(shared, spec.axis)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            made.get(path_name(path), leaf) if path_name(path) in made else leaf
        ),
        params,
        is_leaf=is_compressed,
    )


def untie(params: Any, ties: Sequence[Tie]) -> Any:
    """The full tree that a tied tree stands for, with each array in all its places.

    Args:
        params: a tree from `tie`, trained or not; leaves may be compressed where
            blocks, not layers, are tied.
        ties: the ties that it was made with.

    Raises:
        TypeError: as `tie`.
        MismatchError: the tree was not made with these ties: a leaf that they leave
            out is present, or one is missing or of another size.
    """
    return _untied("untie", params, ties)


def tied(fn: Callable[..., Any], ties: Sequence[Tie]) -> Callable[..., Any]:
    """Make a function accept a tree from `tie`.

    Each tied array is handed to `fn` in all its places. The function is plain, so that
    `find_sites`, quantization, pruning and `compressed` see the one array with all its
    uses.

    Args:
        fn: a function of the full tree, such as `model.apply`.
        ties: the ties that the tree was made with.

    Returns:
        A function with the arguments and results of `fn`, which raises what `untie`
        raises.
    """

    @functools.wraps(fn)
    def run(params: Any, *args: Any, **kwargs: Any) -> Any:
        return fn(_untied("tied", params, ties), *args, **kwargs)

    return run


def _untied(transform: str, params: Any, ties: Sequence[Tie]) -> Any:
    flat, structure = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda x: x is None or is_compressed(x)
    )
    leaves = {path_name(path): leaf for path, leaf in flat}
    plan = _plan(transform, ties, leaves)
    for path, first in plan.source.items():
        if leaves[path] is not None:
            raise MismatchError(
                f"{transform}: {path} is present, though {first} serves it; give the "
                "tree that tie(params, ties) made"
            )
        if leaves[first] is None:
            raise MismatchError(
                f"{transform}: {first}, which serves {path}, is missing"
            )
    full = dict(leaves)
    for path, first in plan.source.items():
        full[path] = leaves[first]
    for path, spec in plan.layers.items():
        leaf = leaves[path]
        if is_compressed(leaf):
            raise MismatchError(
                f"{transform}: {path} is a {type(leaf).__name__}, of which layers "
                "cannot be repeated; tie blocks, or compress the untied tree"
            )
        _check_layers(path, np.shape(leaf), spec, max(spec.groups) + 1)
        full[path] = jnp.take(leaf, np.asarray(spec.groups, np.int32), spec.axis)
    return jax.tree.unflatten(structure, [full[path_name(path)] for path, _ in flat])


@dataclasses.dataclass(frozen=True)
class _TyingPlan:
    """What ties mean for the leaves of a tree.

    Attributes:
        source: for each leaf that another one serves, the name of that one.
        layers: the spec of each leaf whose layers are tied.
    """

    source: Mapping[str, str]
    layers: Mapping[str, TieLayers]


def _plan(transform: str, ties: Sequence[Tie], leaves: Mapping[str, Any]) -> _TyingPlan:
    if isinstance(ties, Tie) or not isinstance(ties, Sequence):
        raise TypeError(
            f"{transform}: ties are a list of TieBlocks and TieLayers, not {ties!r}"
        )
    if not ties:
        raise MismatchError(f"{transform}: there is no tie, so there is nothing to do")
    source: dict[str, str] = {}
    layers: dict[str, TieLayers] = {}
    taken: dict[str, int] = {}
    for number, spec in enumerate(ties):
        if not isinstance(spec, Tie):
            raise TypeError(
                f"{transform}: tie {number} is {spec!r}, no TieBlocks or TieLayers"
            )
        for path, first in _pairs(transform, spec, leaves):
            if path in taken:
                raise MismatchError(
                    f"{transform}: {path} is in tie {taken[path]} and in tie {number}; "
                    "list all that share its array in one tie"
                )
            taken[path] = number
            if isinstance(spec, TieLayers):
                layers[path] = spec
            elif path != first:
                source[path] = first
    return _TyingPlan(source, layers)


def _pairs(
    transform: str, spec: Tie, leaves: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """The name of every leaf of a tie, and of the leaf that serves it."""
    if isinstance(spec, TieLayers):
        for rest in _below(transform, spec.below, leaves):
            yield spec.below + rest, spec.below + rest
        return
    first, *others = spec.blocks
    names = _below(transform, first, leaves)
    for block in spec.blocks:
        if block.startswith(first + "/") or (block != first and first.startswith(
            block + "/"
        )):  # fmt: skip
            raise MismatchError(f"{transform}: {first} and {block} lie in one another")
    for rest in names:
        yield first + rest, first + rest
    for block in others:
        found = _below(transform, block, leaves)
        if set(found) != set(names):
            odd = sorted(set(found) ^ set(names))
            raise MismatchError(
                f"{transform}: {first} and {block} have different leaves: "
                f"{', '.join(rest.strip('/') for rest in odd[:6])} in one only"
            )
        for rest in names:
            yield block + rest, first + rest


def _below(transform: str, prefix: str, leaves: Mapping[str, Any]) -> list[str]:
    found = [
        name[len(prefix) :]
        for name in leaves
        if name == prefix or name.startswith(prefix + "/")
    ]
    if not found:
        raise MismatchError(
            f"{transform}: no leaf is named {prefix} or lies below it; the tree has "
            f"{', '.join(list(leaves)[:8])}"
        )
    return found


def _check_array(path: str, leaf: Any) -> None:
    if is_compressed(leaf):
        raise MismatchError(
            f"tie: {path} is already a {type(leaf).__name__}; tie the dense arrays, "
            "then compress"
        )
    if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise MismatchError(f"tie: {path} is {leaf!r}, no array of floats")


def _check_same(users: Sequence[str], leaves: Mapping[str, Any]) -> None:
    first = leaves[users[0]]
    for path in users[1:]:
        leaf = leaves[path]
        if leaf.shape != first.shape or leaf.dtype != first.dtype:
            raise MismatchError(
                f"tie: {users[0]} is {first.dtype} {list(first.shape)} and {path} is "
                f"{leaf.dtype} {list(leaf.shape)}; one array cannot be both"
            )


def _check_layers(
    path: str, shape: tuple[int, ...], spec: TieLayers, count: int
) -> None:
    if not -len(shape) <= spec.axis < len(shape) or shape[spec.axis] != count:
        raise MismatchError(
            f"TieLayers: {path} is {list(shape)}, and its axis {spec.axis} should "
            f"number {count} layers for groups {spec.groups}"
        )


def _merged(arrays: Sequence[Any], initial: Initial) -> jax.Array:
    first = jnp.asarray(arrays[0])
    if initial is Initial.FIRST:
        return first
    total = first.astype(jnp.float32)
    for array in arrays[1:]:
        total = total + jnp.asarray(array).astype(jnp.float32)
    return (total / np.float32(len(arrays))).astype(first.dtype)

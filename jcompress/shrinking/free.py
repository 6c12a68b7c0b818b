"""Axes of a function's arguments and results that may shrink."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jcompress.errors import MismatchError
from jcompress.leaves import path_name
from jcompress.shrinking._cutting import axis_name
from jcompress.tracing.trace import is_array

Path = int | str | tuple[int | str, ...]
"""The key of an array among arguments or results; a tuple if it has several."""


@dataclasses.dataclass(frozen=True, eq=False)
class ShrinkableAxes:
    """Let axes of a function's arguments or results shrink with the parameters.

    The function itself, as `find_groups` may take it instead of the bare one: an
    embedding's width that is the result, the classes of a head, the features that a
    model reads. Being called, it is the function. `shrunk` of it is a
    `ShrinkableAxes`, too, so that what calls `find_groups` again and again goes on with
    these axes.

    Attributes:
        fn: the function, `fn(variables, *args, **kwargs)`.
        inputs: for arguments behind the tree the axes that may shrink. A positional
            argument is named by its place, 0 for the first behind the tree, a keyword
            argument by its keyword; an array in it by the path to it, as a tuple:
            `(0, "image")`.
        outputs: the same of results: `"logits"` of a dict, 0 of a tuple, and the empty
            path `()` if there is but one. Axes may be counted from the end.

    Raises:
        TypeError: `inputs` or `outputs` does not give a sequence of axes for each name.
        ValueError: no axis is named, or an array twice.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.shrinking import find_groups
        >>> def embed(params, x):
        ...     return x @ params["w"]
        >>> params = {"w": jnp.ones((3, 4))}
        >>> fixed = find_groups(embed, params, jnp.ones((2, 3)))
        >>> loose = find_groups(
        ...     ShrinkableAxes(embed, outputs={(): [-1]}), params, jnp.ones((2, 3))
        ... )
        >>> len(fixed), [group.name for group in loose]
        (0, ['w:1'])
    """

    fn: Callable[..., Any]
    _: dataclasses.KW_ONLY
    inputs: Mapping[Path, Sequence[int]] = dataclasses.field(default_factory=dict)
    outputs: Mapping[Path, Sequence[int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in ("inputs", "outputs"):
            given = getattr(self, kind)
            named = isinstance(given, Mapping) and all(
                isinstance(axes, Sequence) and not isinstance(axes, str)
                for axes in given.values()
            )
            if not named:
                raise TypeError(
                    f"ShrinkableAxes: {kind} gives axes by place, keyword or path, as "
                    f"in {{0: [-1]}}, not {given!r}"
                )
            if len({_tuple(path) for path in given}) < len(given):
                raise ValueError(
                    f"ShrinkableAxes: {kind} names an array twice: {given}"
                )
        if not any([*self.inputs.values(), *self.outputs.values()]):
            raise ValueError(
                "ShrinkableAxes: name an axis, as in ShrinkableAxes(fn, outputs={(): "
                "[-1]}); without one use the function as it is"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives."""
        return self.fn(*args, **kwargs)


class Named(NamedTuple):
    """The leaves of a function's arguments behind the tree, with their names."""

    paths: list[tuple[int | str, ...]]
    names: list[str]
    leaves: list[Any]
    structure: Any

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "Named":
        """Name them, in the order in which a traced function takes them."""
        flat, structure = jax.tree_util.tree_flatten_with_path(
            (tuple(args), dict(kwargs))
        )
        paths = [path[1:] for path, _ in flat]
        leaves = [x for _, x in flat]
        return cls(
            list(map(key_path, paths)), list(map(path_name, paths)), leaves, structure
        )

    @property
    def arrays(self) -> list[tuple[str, Any]]:
        """Those that are traced."""
        pairs = zip(self.names, self.leaves, strict=True)
        return [(name, leaf) for name, leaf in pairs if is_array(leaf)]

    @property
    def array_paths(self) -> list[tuple[int | str, ...]]:
        """The paths to those that are traced."""
        pairs = zip(self.paths, self.leaves, strict=True)
        return [path for path, leaf in pairs if is_array(leaf)]

    def rebuild(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with other leaves."""
        args, kwargs = jax.tree_util.tree_unflatten(self.structure, leaves)
        return args, kwargs


def free_axes(
    kind: str,
    wanted: Mapping[Path, Sequence[int]],
    paths: Sequence[tuple[int | str, ...]],
    shapes: Sequence[tuple[str, tuple[int, ...]]],
) -> list[frozenset[int]]:
    """For each array of these paths, names and shapes the axes that may shrink.

    Raises:
        MismatchError: there is no such array or axis, or it has a single position.
    """
    found = dict(zip(paths, shapes, strict=True))
    for path, axes in wanted.items():
        if _tuple(path) not in found:
            known = ", ".join(_written(path) for path in paths) or "none"
            raise MismatchError(
                f"ShrinkableAxes: the function has no {kind} {path!r} that is an "
                f"array; it has {known}"
            )
        name, shape = found[_tuple(path)]
        for axis in axes:
            if not -len(shape) <= axis < len(shape) or shape[axis] < 2:
                raise MismatchError(
                    f"ShrinkableAxes: {axis_name(name, axis, kind)} cannot shrink: "
                    f"its shape is {list(shape)}"
                )
    by_path = {_tuple(path): axes for path, axes in wanted.items()}
    return [
        frozenset(axis % len(shape) for axis in by_path.get(path, ()))
        for path, (_, shape) in found.items()
    ]


def key_path(path: tuple[Any, ...]) -> tuple[int | str, ...]:
    """The keys that lead to a leaf: places in sequences, keys of dicts, attributes."""

    def one(key: Any) -> int | str:
        found = (getattr(key, name, None) for name in ("key", "idx", "name"))
        return next((x for x in found if x is not None), str(key))

    return tuple(map(one, path))


def _tuple(path: Path) -> tuple[int | str, ...]:
    return path if isinstance(path, tuple) else (path,)


def _written(path: tuple[int | str, ...]) -> str:
    """As one would write it: the only key without the tuple."""
    return repr(path[0] if len(path) == 1 else path)
